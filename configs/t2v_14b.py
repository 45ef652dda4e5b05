"""Text to video in the sizes of Wan 2.1 T2V-14B: 480p and 720p, 81 frames at 16 fps.

Transformer 14.288 B parameters; text encoder and autoencoder are those of `t2v_1_3b.py`, where the commands are
explained.

    sora-jax prepare --config=configs/t2v_14b.py --videos=videos --autoencoder=wan21-autoencoder \
        --tokenizer=spiece.model --out=data/720p
    sora-jax train --config=configs/t2v_14b.py --config.data.path=data/720p --workdir=runs/t2v_14b
    sora-jax sample --checkpoint=runs/t2v_14b --prompt="a boat on a lake at dawn" --out=boat.mp4
    sora-jax evaluate --checkpoint=runs/t2v_14b

Devices: 1024 (data 2, fsdp 64, context 8).
Result: not trained. Checked by types alone, on an abstract mesh of that size: the train step's shapes and
shardings, the number of parameters, and 0.7 GiB of training state on a device. Two things stand between it and a
real run: attention holds each row's logits whole (5 heads of 77,824 x 77,824 float32 on a device, 121 GB),
and the text encoder trains along, from random weights.
Source of the sizes: Wan 2025 (arXiv 2503.20314) and its published configurations.
"""

import pathlib
import runpy

smaller = runpy.run_path(str(pathlib.Path(__file__).with_name("t2v_1_3b.py")))


def get_config():
    config = smaller["get_config"]()
    config.transformer.update(width=5120, heads=40, mlp=13_824, layers=40)
    config.data.update(
        sizes=("960", "632", "256"),  # 960 x 960 pixels are as many as 1280 x 720
        batch=256,
        row_patches=77_824,  # the largest clip, 21 x 45 x 80 patches at 1280x720, with room for other shapes
    )
    config.mesh.update(fsdp=64, context=8)
    config.train.update(accumulate=2)
    config.sample.update(size="1280x720", guidance=5.0, shift=5.0)
    return config
