"""Convolutions over frames, rows and columns in the forms that backends are fast with."""

import jax
import jax.numpy as jnp

from sora_jax.core.mesh import is_split

FEW = 8  # clips on a device; XLA:TPU makes a batch of at least 8, the sublanes of a register
NARROW = 16  # below so many channels one convolution of K_f times the channels beats K_f convolutions


def by_frame(x, kernel, stride: int, convolve):
    """The sum of `convolve` over the kernel's frames, each with the frames of x that it meets.

    Args:
      x: [B, F, H, W, C_in].
      kernel: [K_f, K_h, K_w, C_in, C_out].
      stride: over frames; there is no padding.
      convolve: (frames [B, F', H, W, C_in], kernel [K_h, K_w, C_in, C_out]) -> [B, F', H', W', C_out].
    Returns: [B, F', H', W', C_out], F' = (F - K_f) // stride + 1.
    """
    K_f, *_, C_in, C_out = kernel.shape
    frames = (x.shape[1] - K_f) // stride + 1
    span = (frames - 1) * stride + 1
    shifted = [x[:, tap : tap + span : stride] for tap in range(K_f)]
    if min(C_in, C_out) < NARROW:
        return convolve(jnp.concatenate(shifted, axis=-1), jnp.concatenate(list(kernel), axis=-2))
    return sum(convolve(frames, tap) for frames, tap in zip(shifted, kernel, strict=True))


def few_clips(x) -> bool:
    """Whether x [B, F, H, W, C] has too few clips on a device to be the batch of a convolution on TPU."""
    sharding = jax.typeof(x).sharding
    clips, *_ = x.shape if sharding.mesh.empty else sharding.shard_shape(x.shape)
    return clips < FEW


def taps_as_channels(x, kernel, stride, padding):
    """`ops.conv3d` as one over frames and rows, with columns as its batch and the columns' taps as channels.

    With few clips of large frames, XLA:TPU cuts the columns into a batch itself, for each convolution anew. Where
    the columns are split over devices, rows are the batch.
    """
    axis = 2 if is_split(x, 3) else 3
    (before, after), size, step = padding[axis - 2], kernel.shape[axis - 1], stride[axis - 1]
    span = (x.shape[axis] + before + after - size) // step * step + 1  # from the first to the last output
    shifted = []
    for tap in range(size):
        edges = [(0, 0, 0)] * 5
        edges[axis] = (before - tap, span - x.shape[axis] - before + tap, 0)
        moved = jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
        shifted.append(jax.lax.slice_in_dim(moved, 0, span, step, axis))
    x = jnp.concatenate(shifted, axis=-1)
    kernel = jnp.moveaxis(kernel, axis - 1, 2)
    kernel = kernel.reshape(1, *kernel.shape[:2], -1, kernel.shape[-1])
    # Clips are a dimension that the kernel does not span: no two dimensions can be the batch.
    layout = "DFNHC" if axis == 2 else "DFHNC"
    other = 5 - axis
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, stride[0], stride[other - 1]),
        [(0, 0), (0, 0), padding[other - 2]],
        dimension_numbers=(layout, "DFHIO", layout),
    )
