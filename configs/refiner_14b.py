"""A refiner in the sizes of Wan 2.1 14B: 480p becomes 720p, and 1080p in two passes, in windows of 81 frames.

It starts as the model of configs/t2v_14b.py; its transformer has 0.41 M weights more, for the input beside the
noise. Pairs are made and encoded in the step: a crop of 832x480 of a clip of 1280x720, and the same crop of its
version at two thirds of the size. Frames of 720p and 1080p are refined in overlapping tiles of 832x480.

    sora-jax plan --config=configs/refiner_14b.py --topology=v5p:4x4x4
    sora-jax prepare --config=configs/refiner_14b.py --videos=videos --tokenizer=spiece.model --out=data/720p
    sora-jax train --config=configs/refiner_14b.py --config.data.path=data/720p \
        --config.train.init_from=runs/t2v_14b --workdir=runs/refiner_14b
    sora-jax refine --checkpoint=runs/refiner_14b --video=small.mp4 --size=1280x720 --out=large.mp4
    sora-jax evaluate --subject='refined --prompts=prompts.txt' --suite=temporal --out=report

Devices: 64 (fsdp 16, ulysses 4).
Time: not measured.
Result: not trained. The step type-checks on 64 devices; it has not been compiled.
"""

import pathlib
import runpy

generator = runpy.run_path(str(pathlib.Path(__file__).with_name("t2v_14b.py")))


def get_config():
    config = generator["get_config"]("480p")
    config.objective = "refine"
    config.transformer.condition_channels = 4 + config.autoencoder.latent_channels
    config.refine.scale = 1.5
    config.data.update(
        autoencoder="wan21-autoencoder", sizes=("1280x720",), frames=(81,), crop_size="832x480", batch=16
    )
    # Windows of a long video begin with refined frames.
    config.masks.update(text=3.0, prefix=1.0)
    config.flow.update(shift=2.0, time_max=0.65)
    config.optimizer.update(learning_rate=2e-5)
    config.train.update(steps=10_000)
    config.sample.update(size="1280x720", steps=4, guidance=1.0, shift=1.0)
    return config
