"""Rotary positions in three dimensions: frame, row and column."""

import jax.numpy as jnp

from sora_jax.kernels import ops


def rope_angles(positions, K: int, base: float = 10000.0):
    """Angles of 3-D rotary positions, one for each pair of head elements, [B, N, K / 2] float32.

    Rows and columns take K // 6 of the K / 2 pairs each, frames the rest. Each axis has frequencies of its own,
    which fall from 1 to about 1 / base. bfloat16 could not hold positions beyond 256.

    Args:
      positions: (frame, row, column) of each patch, [B, N, 3].
      K: head width, even.
    Source: Su et al. 2021 (arXiv 2104.09864), eq. 15, once per axis.
    """
    pairs = (K // 2 - 2 * (K // 6), K // 6, K // 6)
    angles = []
    for axis, count in enumerate(pairs):
        frequencies = base ** (-jnp.arange(count, dtype=jnp.float32) / count)
        angles.append(positions[..., axis, None].astype(jnp.float32) * frequencies)
    return jnp.concatenate(angles, axis=-1)


def rope_cos_sin(angles):
    """(cosines, sines) of angles [B, N, K / 2], float32, for `apply_rope`."""
    return ops.cos_sin(angles)


def apply_rope(x, rope):
    """Rotate the pairs (i, i + K / 2) of each head; float32 inside.

    Args:
      x: [B, N, A, K].
      rope: of `rope_cos_sin`, [B, N, K / 2] each.
    Returns: [B, N, A, K] in x's type.
    """
    return ops.rotate(x, *rope)
