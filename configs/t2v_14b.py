"""Text to video in the sizes of Wan 2.1 T2V-14B: 480p and 720p, 81 frames at 16 fps.

Transformer 14.288 B parameters; text encoder and autoencoder are those of `t2v_1_3b.py`.

    sora-jax plan --config=configs/t2v_14b.py --topology=v5p:8x8x8
    sora-jax prepare --config=configs/t2v_14b.py --videos=videos --autoencoder=wan21-autoencoder \
        --tokenizer=spiece.model --out=data/720p
    sora-jax train --config=configs/t2v_14b.py --config.data.path=data/720p --workdir=runs/t2v_14b
    sora-jax sample --checkpoint=runs/t2v_14b --prompt="a boat on a lake at dawn" --out=boat.mp4
    sora-jax evaluate --checkpoint=runs/t2v_14b

With `--config=configs/t2v_14b.py:480p` a packed sequence is one clip of 832x480, and a step has 16 of them, for 64
devices.

Devices: 512 (fsdp 64, ulysses 8).
Time: not measured.
Result: not trained. The step type-checks on 512 and on 4,096 devices. docs/notes/chips.md has the
memory and the estimated time of a step on several chips, by their compilers.
Source of the sizes: Wan 2025 (arXiv 2503.20314) and its published configurations.
"""

import pathlib
import runpy

smaller = runpy.run_path(str(pathlib.Path(__file__).with_name("t2v_1_3b.py")))


def get_config(size="720p"):
    config = smaller["get_config"]()
    config.transformer.update(width=5120, heads=40, mlp=13_824, layers=40)
    config.data.update(
        sizes=("960", "632", "256"),  # 960 x 960 pixels are as many as 1280 x 720
        batch=256,
        sequence_length=77_824,  # the largest clip, 21 x 45 x 80 patches at 1280x720, with room for other shapes
    )
    config.mesh.update(fsdp=64, ulysses=8)
    config.train.update(accumulate=2)
    config.sample.update(size="1280x720", guidance=5.0, shift=5.0)
    if size == "480p":
        # A clip of 32,760 patches, padded to a multiple of the kernel's block.
        config.data.update(
            sizes=("832x480",), batch=16, sequence_length=32_768, text_length=512, clips_per_sequence=1
        )
        config.mesh.update(fsdp=16, ulysses=4)
        config.train.update(accumulate=1)
        # Fits into 16 GiB; with 95 GiB, save_products takes a fifth off a step (docs/notes/chips.md).
        config.transformer.remat = "full"
        config.sample.update(size="832x480", shift=3.0)
    elif size != "720p":
        raise ValueError(f"{size}: 720p or 480p")
    return config
