"""A transformer for the shapes world: "a small red circle moves left on a blue background", 64x64, 17 frames.

The latents are those of `autoencoder_shapes.py`, or of the same autoencoder as it ships:

    python -c "from pathlib import Path; from sora_jax.data.shapes import write_world; \
        write_world(Path('world/videos'), 6000, seed=8, sizes=('64x64',), lengths=(17,))"
    sora-jax prepare --config=configs/shapes.py --videos=world/videos --out=data/videos \
        --autoencoder=sora_jax/weights/shapes/autoencoder --tokenizer=data/images/tokenizer.model
    sora-jax train --config=configs/shapes.py --config.data.path=data/images:1,data/short:1,data/videos:5 \
        --workdir=runs/Q4 --config.train.init_from=runs/Q3 --config.train.steps=2200
    sora-jax checkpoint release --workdir=runs/Q6 --out=sora_jax/weights/shapes
    sora-jax evaluate --samples=500 --frames=17

Data, by seed, number, frames and size: images, 7, 12,000, 1, 64x64, which comes first and makes the tokenizer;
short, 9, 6,000, 5, 64x64; videos as above; aspects, 10, 4,000, 17, 96x64 and 64x96; long, 11, 2,500, 33, 64x64.

Stages, each from the one before, a constant pace where no other is said:

    P   images                                                    670 updates  16 min  (1)
    Q1  images:4,short:2                                          777 updates  20 min  (1)
    Q2  images:3,short:1,videos:2                               1,700 updates  39 min  (2), cosine to 0.02
    Q3  images:1,short:1,videos:4                                 721 updates  30 min
    Q4  images:1,short:1,videos:5                               2,200 updates  60 min  cosine to 0.3
    Q5  images:2,short:1,videos:4,aspects:1.5,long:0.5          1,000 updates  60 min  (3), cosine to 0.02
    (1) config.flow.shift=5, config.transformer.rotary_base=10000; (2) the same with 6
    (3) config.optimizer.learning_rate=8e-4 and in config.data batch=4, row_patches=1152, row_clips=18,
        row_tokens=400

Devices: 1, a laptop's CPU. 4,423,168 parameters.
Result: on two cores of an AMD EPYC, GLIBC_TUNABLES=glibc.malloc.hugetlb=1, in the times above: docs/evaluation.md,
"The checkpoint that ships".
"""

import pathlib
import runpy

from sora_jax.config import default_config

autoencoder = runpy.run_path(str(pathlib.Path(__file__).with_name("autoencoder_shapes.py")))


def get_config():
    config = default_config()
    config.autoencoder.update(autoencoder["get_config"]().autoencoder)
    config.text.update(
        vocabulary=1024, width=128, heads=4, head_dim=32, mlp=256, layers=2, max_tokens=64, dtype="float32"
    )
    config.transformer.update(
        patch=(1, 2, 2),  # four times as many videos a second as with (1, 1, 1): it learns far sooner
        channels=config.autoencoder.latent_channels,
        text_width=config.text.width,
        width=256,
        heads=4,
        mlp=1024,
        layers=6,
        rotary_base=100.0,
        predicts="data",
        remat="none",
        unroll=6,
    )
    config.data.update(
        sizes=("64x64",),
        frames=(17, 5, 1),
        batch=32,
        row_patches=144,  # a video of 9 x 4 x 4 patches, three of 3 x 4 x 4, or nine pictures
        row_tokens=200,
        row_clips=9,
        threads=1,
    )
    # Latents of 64 channels show through much noise: where things are is decided between t = 0.7 and 0.95.
    config.flow.shift_scale = 7.0
    # Most clips are made from text alone; the others learn every task of docs/tasks.md.
    config.masks.update(
        nothing=40,
        first=2,
        last=1,
        both=1,
        prefix=2,
        suffix=1,
        ends=1,
        random=1,
        outside=0.5,
        inside=0.5,
    )
    # AdamW's part has spikes at 3e-3; the matrices learn faster than with it at three times AdamW's pace.
    config.optimizer.update(
        name="muon", learning_rate=2e-3, muon_rms=0.6, warmup_steps=50, spike=2.0, ema_decay=0.99
    )
    config.train.update(save_every=100)
    config.sample.update(size="64x64", frames=17, steps=30, solver="ancestral", guidance=3.0)
    return config
