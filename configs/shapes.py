"""A transformer for the shapes world: "a small red circle moves left on a blue background", 64x64, 17 frames.

Its latents are those of `autoencoder_shapes.py`; the package ships that autoencoder and the tokenizer. From
nothing, with an autoencoder of its own, in stages: `sora-jax recipe shapes --workdir=runs/shapes`, declared in
sora_jax/worlds/shapes/recipe.py and not yet run in full. A training of one stage, with the shipped autoencoder:

    sora-jax data shapes --out=data/videos --sets=pictures
    sora-jax prepare --config=configs/shapes.py --videos=data/videos/pictures --out=data/pictures \
        --config.data.frames=1, --autoencoder=sora_jax/worlds/shapes/weights/autoencoder \
        --tokenizer=sora_jax/worlds/shapes/weights/tokenizer.model
    sora-jax train --config=configs/shapes.py --config.data.path=data/pictures --workdir=runs/pictures \
        --config.train.steps=300
    python tests/benchmarks/shapes/learning_curve.py runs/pictures
    sora-jax checkpoint release --workdir=runs/pictures --out=released
    sora-jax evaluate --suite=shapes

The shipped model was trained by hand, in nine runs: docs/notes/shapes_stages.md.

Devices: 1, a laptop's CPU. 9,656,704 parameters.
Time of the shipped model: 19 h 11 min in nine runs, on two cores of an AMD EPYC or an Intel Xeon.
Result: 98.0 % of 500 held-out prompts are obeyed in every attribute: docs/notes/shapes_model.md.
"""

import pathlib
import runpy

from sora_jax.config.load import default_config

autoencoder = runpy.run_path(str(pathlib.Path(__file__).with_name("autoencoder_shapes.py")))


def get_config():
    config = default_config()
    config.autoencoder.update(autoencoder["get_config"]().autoencoder)
    config.text.update(
        vocabulary=1024, width=128, heads=4, head_dim=32, mlp=256, layers=2, max_tokens=64, dtype="float32"
    )
    config.transformer.update(
        patch=(1, 2, 2),  # three times as many videos per second as (1, 1, 1)
        channels=config.autoencoder.latent_channels,
        text_width=config.text.width,
        width=256,
        heads=4,
        mlp=1024,
        layers=8,
        rotary_base=100.0,
        predicts="data",
        remat="none",
        unroll=8,
    )
    config.data.update(
        sizes=("64x64",),
        frames=(17, 5, 1),
        batch=32,
        sequence_length=144,  # a video of 9 x 4 x 4 patches, three of 3 x 4 x 4, or nine pictures
        text_length=80,  # pictures alone need 200
        clips_per_sequence=9,
        threads=1,
    )
    # Latents of 64 channels show through much noise: positions are decided between t = 0.7 and 0.95.
    config.flow.shift_scale = 7.0
    config.flow.ghosts = 0.35  # without them a sampler makes one object twice
    # Most clips are text to video; the others train every task of docs/guide/tasks.md.
    config.masks.update(
        text=40,
        first_frame=2,
        last_frame=1,
        first_last=1,
        prefix=2,
        suffix=1,
        prefix_suffix=1,
        random_frames=1,
        inpaint=0.5,
        outpaint=0.5,
    )
    # 3e-3 makes the AdamW part unstable; matrices learn best at three times its update, hence muon_rms.
    config.optimizer.update(
        name="muon", learning_rate=2e-3, muon_rms=0.6, warmup_steps=50, spike=2.0, ema_decay=0.99
    )
    config.train.update(save_every=100)
    # Guidance at the highest times makes three things of two; at the lowest times it bends the sides of squares.
    config.sample.update(
        size="64x64",
        frames=17,
        steps=50,
        solver="ancestral",
        guidance=3.0,
        guidance_min=0.4,
        guidance_max=0.95,
    )
    return config
