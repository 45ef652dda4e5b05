"""Correlation of all pixels of two feature maps, and its values around where each pixel may have moved.

Source: Teed & Deng 2020 (arXiv 2003.12039), section 3.2.
"""

import jax
import jax.numpy as jnp

LEVELS = 4


def correlation_pyramid(a, b) -> list:
    """Correlations of each pixel of a with all pixels of b, at LEVELS resolutions of b.

    Args:
      a, b: [B, h, w, C].
    Returns: [B, h * w, h // 2^level, w // 2^level] of each level.
    """
    B, h, w, C = a.shape
    level = jnp.einsum("bqc,bijc->bqij", a.reshape(B, h * w, C), b) / jnp.sqrt(float(C))
    pyramid = [level]
    while len(pyramid) < LEVELS:
        pyramid.append(_halved(pyramid[-1]))
    return pyramid


def correlation_window(pyramid, positions, radius: int):
    """Correlations in a window around a position for each pixel; outside of the map they are 0.

    Args:
      pyramid: of `correlation_pyramid`.
      positions: (x, y) in pixels of the finest level, [B, h, w, 2].
    Returns: [B, h, w, LEVELS * (2 radius + 1)^2]; in a window, y changes fastest.
    """
    B, h, w, _ = positions.shape
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    found = []
    for number, level in enumerate(pyramid):
        centre = positions.reshape(B, h * w, 2) / 2**number
        columns, rows = (
            bilinear_weights(centre[..., axis, None] + offsets, level.shape[3 - axis]) for axis in (0, 1)
        )
        window = jnp.einsum("bqjy,bqyx->bqjx", rows, level)
        window = jnp.einsum("bqix,bqjx->bqij", columns, window)
        found.append(window.reshape(B, h, w, -1))
    return jnp.concatenate(found, axis=-1)


def bilinear_weights(position, size: int):
    """Weights of the pixels 0 ... size - 1 for a value between two of them, [...] -> [..., size]."""
    return jax.nn.relu(1 - jnp.abs(position[..., None] - jnp.arange(size, dtype=jnp.float32)))


def pixel_grid(h: int, w: int):
    """(x, y) of every pixel, [1, h, w, 2] float32."""
    rows, columns = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    return jnp.stack([columns, rows], axis=-1)[None].astype(jnp.float32)


def warp(image, flow):
    """The image seen along a flow: out[y, x] = image[y + flow_y, x + flow_x], bilinear; the border is repeated.

    Args:
      image: [B, H, W, C].
      flow: (x, y) in pixels, [B, H, W, 2].
    """
    B, H, W, C = image.shape
    position = jnp.clip(pixel_grid(H, W) + flow, 0, jnp.array([W - 1, H - 1], jnp.float32))
    first = jnp.floor(position)
    part = position - first
    x, y = first[..., 0].astype(jnp.int32), first[..., 1].astype(jnp.int32)
    pixels = image.reshape(B, H * W, C)
    result = 0.0
    for right in (0, 1):
        for below in (0, 1):
            index = jnp.minimum(y + below, H - 1) * W + jnp.minimum(x + right, W - 1)
            value = jax.vmap(lambda row, at: row[at])(pixels, index)
            weights = (part if right else 1 - part)[..., 0] * (part if below else 1 - part)[..., 1]
            result += value * weights[..., None]
    return result


def _halved(x):
    """The mean of each 2 x 2 of the last two dimensions; an odd last row or column is left out."""
    *rest, h, w = x.shape
    x = x[..., : h // 2 * 2, : w // 2 * 2].reshape(*rest, h // 2, 2, w // 2, 2)
    return jnp.mean(x, axis=(-3, -1))
