"""How much of a video survives the autoencoder: PSNR and SSIM of its reconstruction, and pictures of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.evaluate.metrics import psnr, ssim
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.module import bind
from sora_jax.settings import AutoencoderSettings

PIECE = 4  # latent frames at a time: bounds the memory, whatever the length


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(settings: AutoencoderSettings, params: dict, video):
    """Pixels through the autoencoder and back.

    Args:
      video: [F, H, W, 3] uint8.
    Returns: [F, H, W, 3] uint8.
    """
    model = bind(Autoencoder, settings, params)
    mean, _ = model.encode(video[None].astype(jnp.float32) / 127.5 - 1, piece=PIECE)
    decoded = model.decode(mean, piece=PIECE)[0]
    return jnp.rint(jnp.clip(decoded * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)


def measure_reconstruction(
    settings: AutoencoderSettings, params: dict, video: np.ndarray
) -> tuple[dict, np.ndarray]:
    """({"psnr": dB, "ssim": up to 1}, means over the frames; the reconstruction, uint8) of [F, H, W, 3] uint8."""
    made = reconstruct(settings, params, video)
    # A frame that comes back exactly has an infinite PSNR; 100 dB keeps the mean finite.
    values = {"psnr": jnp.minimum(psnr(video, made), 100.0), "ssim": ssim(video, made)}
    return {name: float(jnp.mean(value)) for name, value in values.items()}, np.asarray(made)
