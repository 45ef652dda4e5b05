"""Quality of an autoencoder's reconstructions."""

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.config.schema import AutoencoderSettings
from sora_jax.evaluate.metrics.image_quality import SCALE_WEIGHTS, WINDOW, ms_ssim, psnr, ssim
from sora_jax.models.autoencoder.lpips import lpips
from sora_jax.models.autoencoder.streaming import decode_stream, encode_stream

MAX_PSNR = 100.0  # dB, for an exact frame; its infinity would spoil every mean
MIN_SIDE_MS_SSIM = WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)  # pixels


def reconstruct(params: dict, settings: AutoencoderSettings, video: np.ndarray) -> np.ndarray:
    """The reconstruction of a video by an autoencoder, as a stream: [F, H, W, 3] uint8 -> the same."""
    latents = (frame for piece in encode_stream(params, settings, video) for frame in piece)
    return np.concatenate(list(decode_stream(params, settings, latents)))


def measure_reconstruction(
    params: dict, settings: AutoencoderSettings, video: np.ndarray, lpips_params: dict | None = None
) -> tuple[dict[str, float], np.ndarray]:
    """Quality of a reconstruction, and the reconstruction.

    Args:
      video: [F, H, W, 3] uint8.
      lpips_params: weights of LPIPS; None: it is not measured.
    Returns: ({"psnr": dB, "ssim": ..., "ms_ssim": for frames of 176 pixels a side or more, "lpips": ...}, means
      over the frames; the reconstruction, [F, H, W, 3] uint8).
    """
    made = reconstruct(params, settings, video)
    values = {"psnr": jnp.minimum(psnr(video, made), MAX_PSNR), "ssim": ssim(video, made)}
    if min(video.shape[1:3]) >= MIN_SIDE_MS_SSIM:
        values["ms_ssim"] = ms_ssim(video, made)
    if lpips_params is not None:
        values["lpips"] = jnp.stack(
            [_lpips(lpips_params, a[None], b[None]) for a, b in zip(video, made, strict=True)]
        )
    return {name: float(jnp.mean(value)) for name, value in values.items()}, made


@jax.jit
def _lpips(params, a, b):
    return lpips(params, *(x.astype(jnp.float32) / 127.5 - 1 for x in (a, b)))
