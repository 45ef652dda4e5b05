"""A small transformer for your own videos: any aspect ratio with about 128 x 128 pixels, 17 frames.

Its latents are those of `autoencoder_clips.py`, which is trained first. `clips` is a folder of videos with
captions: captions.jsonl, captions.csv, or a .txt beside each video.

    sora-jax prepare --config=configs/clips.py --videos=clips --autoencoder=runs/autoencoder --out=data/latents
    sora-jax train --config=configs/clips.py --config.data.path=data/latents --workdir=runs/clips
    sora-jax sample --checkpoint=runs/clips --prompt="a cockatoo turns its head" --out=cockatoo.mp4
    sora-jax evaluate --checkpoint=runs/clips

A larger model: `--config.transformer.width=768 --config.transformer.heads=12 --config.transformer.mlp=3072
--config.transformer.dtype=bfloat16 --config.transformer.remat=full`. Larger and longer videos, in `prepare` and
`train`: `'--config.data.sizes=("256","128")' '--config.data.frames=(33,17,1)' --config.data.sequence_length=4096`.
A machine with eight chips: `--config.mesh.fsdp=8`.

Devices: 1, a laptop's CPU. 13,844,528 parameters.
Time: not measured; the commands above were run for a few updates only.
Result: not trained to the end.
"""

import pathlib
import runpy

from sora_jax.config.load import default_config

autoencoder = runpy.run_path(str(pathlib.Path(__file__).with_name("autoencoder_clips.py")))


def get_config():
    config = default_config()
    config.autoencoder.update(autoencoder["get_config"]().autoencoder)
    config.text.update(
        vocabulary=8192, width=256, heads=4, head_dim=64, mlp=512, layers=4, max_tokens=128, dtype="float32"
    )
    config.transformer.update(
        patch=(1, 1, 1),
        channels=config.autoencoder.latent_channels,
        text_width=config.text.width,
        width=256,
        heads=4,
        mlp=1024,
        layers=8,
        remat="none",
        dtype="float32",
    )
    config.data.update(
        sizes=("128",),
        frames=(17, 1),
        batch=4,
        sequence_length=1024,  # about three videos of 5 frames of 64 patches
        text_length=512,
        clips_per_sequence=8,
    )
    config.optimizer.update(learning_rate=5e-4, warmup_steps=500, ema_decay=0.999)
    config.train.update(
        steps=20_000,
        sample_every=1000,
        sample_prompts=("a cockatoo turns its head", "waves break on a beach", "a man talks to the camera"),
    )
    config.sample.update(size="128x128", frames=17, steps=50)
    return config
