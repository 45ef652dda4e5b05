"""Pixels rearranged: into channels and out of them, repeated, averaged. x is [B, F, H, W, C]."""

import jax
import jax.numpy as jnp

from sora_jax.core.mesh import num_shards


def frame_axes(rows: int, columns: int) -> str:
    """The mesh axes of frames of so many rows and columns of latents: they are split by one of both, or not."""
    chips = num_shards("height", jax.sharding.get_abstract_mesh().shape)
    if rows % chips == 0:
        return "height ."
    return ". width" if columns % chips == 0 else ". ."


def split(x, axis: int, size: int):
    """An axis of n elements as two axes of n / size and size. The first keeps the shards."""
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])


def merge(x, axis: int, axes: int = 2):
    """`axes` axes from this one on as one axis; inverts `split`."""
    return jax.lax.collapse(x, axis, axis + axes)


def repeat_pixels(x):
    """Each pixel twice along rows and columns, [B, F, H, W, C] -> [B, F, 2H, 2W, C]."""
    for axis in (3, 2):  # columns first, which move more: there are half as many rows
        x = jnp.expand_dims(x, axis + 1)
        x = merge(jnp.concatenate([x, x], axis=axis + 1), axis)
    return x


def average_down(x, C_out: int, *, frames: int, side: int):
    """Blocks of frames x side x side pixels as channels, averaged in groups to C_out channels.

    A clip's first frame is a block with zeros before it.
    """
    x = jnp.pad(x, ((0, 0), (x.shape[1] % frames, 0), (0, 0), (0, 0), (0, 0)))
    x = split(split(split(x, 3, side), 2, side), 1, frames)  # [B, F, f, H, h, W, w, C]
    x = merge(x.transpose(0, 1, 3, 5, 7, 2, 4, 6), 4, axes=4)
    return jnp.mean(split(x, 4, x.shape[4] // C_out).astype(jnp.float32), axis=-1).astype(x.dtype)


def repeat_up(x, C_out: int, *, frames: int, side: int, first: bool):
    """Channels repeated, as blocks of frames x side x side pixels.

    Args:
      first: whether x begins a clip, whose first frame becomes one frame.
    """
    x = jnp.repeat(x, C_out * frames * side * side // x.shape[-1], axis=-1)
    x = split(split(split(x, 4, side), 4, side), 4, frames)  # [B, F, H, W, C, f, h, w]
    x = merge(merge(merge(x.transpose(0, 1, 5, 2, 6, 3, 7, 4), 5), 3), 1)
    return x[:, frames - 1 :] if first else x


def pixel_unshuffle(video, patch: int):
    """[B, F, H, W, C] -> [B, F, H / p, W / p, C * p * p], ordered (C, column, row) as Wan 2.2 has it."""
    x = split(split(video, 3, patch), 2, patch)  # [B, F, H, h, W, w, C]
    return merge(x.transpose(0, 1, 2, 4, 6, 5, 3), 4, axes=3)


def pixel_shuffle(x, patch: int):
    """The inverse of `pixel_unshuffle`."""
    x = split(split(x, 4, patch), 4, patch)  # [B, F, H, W, C, w, h]
    return merge(merge(x.transpose(0, 1, 2, 6, 3, 5, 4), 4), 2)
