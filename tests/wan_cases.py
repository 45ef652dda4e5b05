"""Small autoencoders of both published geometries with random weights, the same on every machine.

The weights are made from each tensor's name and shape in diffusers, so that the comparison with it and the
recorded outputs in goldens/ are of one and the same model.
"""

import math
import zlib

import numpy as np

from sora_jax.settings import AutoencoderSettings

CASES = {
    "wan21": AutoencoderSettings(width=8, decoder_width=8, latent_channels=4, dtype="float32"),
    "wan22": AutoencoderSettings(
        width=8, decoder_width=12, latent_channels=6, patch=2, shortcuts=True, dtype="float32"
    ),
}
ROWS, COLUMNS = 32, 48


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights by diffusers' names; every pixel that comes out is well inside [-1, 1], where nothing is clipped."""
    return {name: _random_tensor(name, shape) for name, shape in shapes.items()}


def _random_tensor(name, shape):
    # RandomState, because its streams are frozen for good (NEP 19).
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("gamma"):
        return 1 + 0.1 * values
    if name.endswith("bias"):
        return 0.1 * values
    gain = 0.15 if name == "decoder.conv_out.weight" else 1.0
    return values * (gain / math.sqrt(math.prod(shape[1:])))


def random_video(frames: int) -> np.ndarray:
    """[1, F, H, W, 3] float32 in [-1, 1]."""
    return np.random.RandomState(frames).uniform(-1, 1, (1, frames, ROWS, COLUMNS, 3)).astype(np.float32)


def random_latents(frames: int, settings: AutoencoderSettings) -> np.ndarray:
    """Raw latents of a video of this many frames, [1, F', H', W', C] float32."""
    side = settings.spatial_stride
    shape = (1, 1 + frames // settings.temporal_stride, ROWS // side, COLUMNS // side, settings.latent_channels)
    return np.random.RandomState(frames + 1).standard_normal(shape).astype(np.float32)
