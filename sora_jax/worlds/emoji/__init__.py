"""The emoji world: captioned animations of the npm packages @lobehub/fluent-emoji-anim-1 to -4."""

import pathlib

DATA = pathlib.Path("data/emoji")  # where `sora-jax data emoji` writes, unless told otherwise
ANIMATIONS = "animations"  # folder in it of the loops, NAME.npy
SHIPPED_MODEL = pathlib.Path(__file__).parent / "weights"  # a released model, trained by configs/emoji.py
