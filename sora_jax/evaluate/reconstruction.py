"""How much of a video survives the autoencoder: PSNR and SSIM of its reconstruction."""

import jax.numpy as jnp
import numpy as np

from sora_jax.evaluate.metrics import psnr, ssim
from sora_jax.models.streaming import decode_stream, encode_stream
from sora_jax.settings import AutoencoderSettings

BEST_PSNR = 100.0  # dB, of a frame that comes back exactly: its true value, infinity, would spoil every mean


def reconstruct(params: dict, settings: AutoencoderSettings, video: np.ndarray) -> np.ndarray:
    """Pixels through the autoencoder and back, as a stream: [F, H, W, 3] uint8 -> the same."""
    latents = (frame for piece in encode_stream(params, settings, video) for frame in piece)
    return np.concatenate(list(decode_stream(params, settings, latents)))


def measure_reconstruction(
    params: dict, settings: AutoencoderSettings, video: np.ndarray
) -> tuple[dict[str, float], np.ndarray]:
    """({"psnr": dB, "ssim": up to 1}, means over the frames; the reconstruction) of [F, H, W, 3] uint8."""
    made = reconstruct(params, settings, video)
    values = {"psnr": jnp.minimum(psnr(video, made), BEST_PSNR), "ssim": ssim(video, made)}
    return {name: float(jnp.mean(value)) for name, value in values.items()}, made
