"""A refiner in the sizes of Wan 2.2 TI2V-5B: 480p becomes 704p, in windows of 121 frames.

It starts as the model of configs/t2v_5b.py; its transformer has 0.64 M weights more, for the input beside the
noise. Pairs are made and encoded in the step: a clip of 1280x704, and its version at two thirds of the size.

    sora-jax plan --config=configs/refiner_5b.py --topology=v6e:16x16
    sora-jax prepare --config=configs/refiner_5b.py --videos=videos --tokenizer=spiece.model --out=data/704p
    sora-jax train --config=configs/refiner_5b.py --config.data.path=data/704p \
        --config.train.init_from=runs/t2v_5b --workdir=runs/refiner_5b
    sora-jax refine --checkpoint=runs/refiner_5b --video=small.mp4 --size=1280x704 --out=large.mp4
    sora-jax evaluate --subject='refined --prompts=prompts.txt' --suite=temporal --out=report

Devices: 256 (fsdp 32, ulysses 8).
Time: not measured.
Result: not trained. The step type-checks on 256 devices; it has not been compiled.
"""

import pathlib
import runpy

generator = runpy.run_path(str(pathlib.Path(__file__).with_name("t2v_5b.py")))


def get_config():
    config = generator["get_config"]()
    config.objective = "refine"
    config.transformer.condition_channels = 4 + config.autoencoder.latent_channels
    config.refine.scale = 1.5
    config.data.update(
        autoencoder="wan22-autoencoder",
        sizes=("1280x704",),
        frames=(121,),
        crop_size="1280x704",
        batch=32,
        sequence_length=28_672,  # 31 x 22 x 40 patches
        text_length=512,
        clips_per_sequence=1,
    )
    # Windows of a long video begin with refined frames.
    config.masks.update(text=3.0, prefix=1.0)
    config.flow.update(shift=2.0, time_max=0.65)
    config.optimizer.update(learning_rate=2e-5)
    config.train.update(steps=10_000, accumulate=1)
    config.sample.update(steps=4, guidance=1.0, shift=1.0)
    return config
