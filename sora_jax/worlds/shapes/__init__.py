"""The shapes world: captioned videos rendered by code, and the models trained on them that the package ships."""

import pathlib

SHIPPED_MODEL = pathlib.Path(__file__).parent / "weights"  # a released model, trained by configs/shapes.py
SHIPPED_AUTOENCODER = SHIPPED_MODEL / "autoencoder"  # trained by configs/autoencoder_shapes.py
