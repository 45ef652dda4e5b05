"""Resizing and padding as PyTorch does it, as products with constant matrices: no gather on any backend."""

import jax.numpy as jnp
import numpy as np

CUBIC = -0.75  # the coefficient of torch's bicubic kernel; jax.image.resize has Keys' -0.5


def resize(x, size: tuple[int, int], method: str = "bilinear", scales: tuple[float, float] | None = None):
    """Images of another size, as `torch.nn.functional.interpolate` without antialiasing makes them.

    Args:
      x: [B, H, W, C] float.
      size: (rows, columns) of the result.
      method: "bilinear" or "bicubic", whose values may lie outside of the input's range.
      scales: factors that positions are computed with; None: the ratios of the sizes.
    Returns: [B, *size, C].
    """
    if tuple(x.shape[1:3]) == tuple(size) and scales is None:
        return x
    row_scale, column_scale = scales or (None, None)
    rows = interpolation_matrix(x.shape[1], size[0], method, row_scale)
    columns = interpolation_matrix(x.shape[2], size[1], method, column_scale)
    x = jnp.einsum("ih,bhwc->biwc", rows, x, precision="highest")
    return jnp.einsum("jw,biwc->bijc", columns, x, precision="highest")


def interpolation_matrix(old: int, new: int, method: str, scale: float | None = None) -> np.ndarray:
    """Weights of the old pixels for each new one, [new, old] float32; the border is repeated."""
    centre = (np.arange(new) + 0.5) / (scale or new / old) - 0.5
    if method == "bilinear":
        centre = np.maximum(centre, 0)  # torch does so for bilinear alone
    first = np.floor(centre).astype(int)
    matrix = np.zeros((new, old), np.float32)
    for offset in (0, 1) if method == "bilinear" else (-1, 0, 1, 2):
        distance = np.abs(centre - first - offset)
        weight = 1 - distance if method == "bilinear" else _cubic(distance)
        np.add.at(matrix, (np.arange(new), np.clip(first + offset, 0, old - 1)), weight.astype(np.float32))
    return matrix


def _cubic(distance):
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(rows, columns) of an image whose shorter side is scaled to `size`; the longer one is truncated."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def pad_to_multiple(x, multiple: int):
    """Images in the middle of ones whose sides are multiples, the border repeated, and how to cut them out again.

    Args:
      x: [B, H, W, C].
    Returns: (padded, slices of the rows and columns).
    """
    H, W = x.shape[1:3]
    odd = (-H % multiple, -W % multiple)
    before = (odd[0] // 2, odd[1] // 2)
    padding = [(first, both - first) for first, both in zip(before, odd, strict=True)]
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)), mode="edge")
    return padded, (slice(before[0], before[0] + H), slice(before[1], before[1] + W))
