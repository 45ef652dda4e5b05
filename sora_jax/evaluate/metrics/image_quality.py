"""PSNR, SSIM and MS-SSIM of two videos, a number per frame.

Frames are [..., H, W, C], uint8 or floats in [0, 1]. All arithmetic is in fp32.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.errors import InputError

# Wang et al. 2004, section III-C: a window of 11 pixels, sigma 1.5, and the two constants for values in [0, 1].
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
# Wang et al. 2003, table 1: one weight a scale, the finest first.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@jax.jit
def psnr(a: jax.Array, b: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of every frame, in dB; infinite where the frames are equal.

    Args:
      a, b: frames, [..., H, W, C], uint8 or float in [0, 1].
    Returns: [...] float32.
    Raises: InputError if the shapes differ or the values are of another type.
    """
    a, b = unit_range(a, b)
    return -10 * jnp.log10(jnp.mean(jnp.square(a - b), axis=(-3, -2, -1)))


@jax.jit
def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Structural similarity of every frame, mean over channels and positions of the window.

    Args:
      a, b: frames, [..., H, W, C], uint8 or float in [0, 1], H and W at least 11.
    Returns: [...] float32, 1 where the frames are equal.
    Raises: InputError as `psnr` does, and for frames smaller than the window.
    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13.
    """
    a, b = unit_range(a, b)
    check_size(a.shape, 1, "SSIM")
    luminance, structure = similarity(a, b)
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))


@jax.jit
def ms_ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Multi-scale structural similarity of every frame, over five scales.

    Args:
      a, b: frames, [..., H, W, C], uint8 or float in [0, 1], H and W at least 176.
    Returns: [...] float32, 1 where the frames are equal, the mean over channels.
    Raises: InputError as `psnr` does, and for frames in whose coarsest scale the window does not fit.
    Source: Wang et al. 2003, "Multiscale structural similarity for image quality assessment", eq. 7.
    """
    a, b = unit_range(a, b)
    check_size(a.shape, 2 ** (len(SCALE_WEIGHTS) - 1), "MS-SSIM")
    product = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        luminance, structure = similarity(a, b)
        last = scale == len(SCALE_WEIGHTS) - 1
        mean = jnp.mean(luminance * structure if last else structure, axis=(-3, -2))  # [..., C]
        # Structure can be negative, where fractional powers are undefined.
        product *= jnp.maximum(mean, 0) ** weight
        a, b = halve(a), halve(b)
    return jnp.mean(product, axis=-1)


def similarity(a, b):
    """(luminance, contrast times structure) of SSIM at each position of the window: eqs. 6 to 13."""
    mean_a, mean_b, square_a, square_b, product = blur(jnp.stack([a, b, a * a, b * b, a * b]))
    variance_a, variance_b = square_a - mean_a * mean_a, square_b - mean_b * mean_b
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a * mean_a + mean_b * mean_b + C1)
    structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return luminance, structure


def blur(x):
    """Means under the Gaussian window, [..., H, W, C] -> [..., H - 10, W - 10, C]."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    # Shifted sums rather than a convolution or a matmul: fp32 on every device, and XLA fuses them.
    H, W = x.shape[-3:-1]
    x = sum(w * x[..., i : i + H - WINDOW + 1, :, :] for i, w in enumerate(weights))
    return sum(w * x[..., i : i + W - WINDOW + 1, :] for i, w in enumerate(weights))


def halve(x):
    """Means of 2x2 pixels; an odd last row or column is dropped."""
    *batch, H, W, C = x.shape
    x = x[..., : H // 2 * 2, : W // 2 * 2, :]
    return jnp.mean(x.reshape(*batch, H // 2, 2, W // 2, 2, C), axis=(-4, -2))


def unit_range(a, b):
    if a.shape != b.shape or len(a.shape) < 3:
        raise InputError(
            f"frames of {list(a.shape)} and {list(b.shape)} can't be compared; both are [..., H, W, C]"
        )
    for x in (a, b):
        if x.dtype != jnp.uint8 and not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(f"frames of type {x.dtype} can't be compared; give uint8, or floats in [0, 1]")
    return tuple(x.astype(jnp.float32) / (255 if x.dtype == jnp.uint8 else 1) for x in (a, b))


def check_size(shape, coarsest, name):
    least = WINDOW * coarsest
    if min(shape[-3:-1]) < least:
        raise InputError(f"{name} needs frames of at least {least}x{least} pixels, not {shape[-2]}x{shape[-3]}")
