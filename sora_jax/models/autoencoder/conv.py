"""Causal 3-D convolution, and the layers around it that know time and space.

Every layer that looks back in time takes the frames it saw last (`cache`) and returns those that its next call
will need; `cache=None` is the beginning of a clip. A clip in one call and a clip in pieces are the same code.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.mesh import num_shards, spec
from sora_jax.kernels import ops
from sora_jax.kernels.conv import by_frame
from sora_jax.models.layers.params import RngKeys

# A weight below this many elements is cheaper to hold on every chip than to gather.
SHARD_FROM = 2**16


def weight(init, shape: tuple[int, ...], *, rngs: RngKeys) -> nnx.Param:
    """A float32 weight; a big one is split over fsdp along its last dimension that divides.

    Args:
      init: one of jax.nn.initializers.
      shape: [..., C_in, C_out].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return nnx.Param(init(rngs.params(), shape, jnp.float32))
    axes = ["."] * len(shape)
    chips = num_shards("embed", mesh.shape)
    if math.prod(shape) >= SHARD_FROM:
        divisible = [axis for axis in (len(shape) - 1, len(shape) - 2) if shape[axis] % chips == 0]
        if divisible:
            axes[divisible[0]] = "embed"
    return nnx.Param(init(rngs.params(), shape, jnp.float32, out_sharding=spec(" ".join(axes))))


def gathered(param: nnx.Param, dtype) -> jax.Array:
    """The whole weight on every chip, cast first so that half the bytes travel in bfloat16."""
    value = param[...].astype(dtype)
    if jax.typeof(value).sharding.mesh.empty:
        return value
    return jax.reshard(value, jax.P())


def fan_in_init(key, shape, dtype, out_sharding=None):
    """A uniform kernel [..., C_in, C_out] whose outputs have the variance of its inputs."""
    bound = math.sqrt(3 / math.prod(shape[:-1]))
    # Drawn flat: XLA:CPU takes six times as long to compile a generator of a five-dimensional array.
    kernel = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)
    return kernel if out_sharding is None else jax.reshard(kernel, out_sharding)


def identity_init(key, shape, dtype, out_sharding=None):
    """A kernel [K, 1, 1, C_in, C_out] that passes on the newest frame, once per C_in of its outputs."""
    del key
    *taps, C_in, C_out = shape
    kernel = jnp.zeros((*taps, C_in, C_out), dtype)
    kernel = kernel.at[-1, 0, 0].set(jnp.tile(jnp.eye(C_in, dtype=dtype), (1, C_out // C_in)))
    return kernel if out_sharding is None else jax.reshard(kernel, out_sharding)


def conv3d(x: jax.Array, kernel: jax.Array, *, stride: tuple[int, int, int]) -> jax.Array:
    """Convolve over time without padding and over space with Wan's: same, or one row and column at the end.

    Args:
      x: [B, F, H, W, C_in].
      kernel: [K_f, K_h, K_w, C_in, C_out], replicated.
      stride: over frames, rows and columns.
    Returns: [B, (F - K_f) / stride + 1, H / stride, W / stride, C_out], sharded as x.
    """
    if kernel.shape[1:3] == (1, 1):
        return by_frame(x, kernel, stride[0], lambda frames, tap: frames @ tap[0, 0])
    padding = [(0, 1) if s == 2 else (k // 2, k // 2) for k, s in zip(kernel.shape[1:3], stride[1:], strict=True)]
    return ops.conv3d(x, kernel, stride, padding)


class CausalConv(nnx.Module):
    """A convolution that sees no frame after the one it makes.

    Args:
      kernel: sizes over frames, rows and columns; stride likewise.
    """

    def __init__(
        self,
        C_in: int,
        C_out: int,
        kernel: tuple[int, int, int],
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        init=fan_in_init,
        rngs: RngKeys,
    ):
        self.stride = stride
        self.history = kernel[0] - stride[0]  # frames that one call leaves for the next
        self.kernel = weight(init, (*kernel, C_in, C_out), rngs=rngs)
        self.bias = weight(jax.nn.initializers.zeros, (C_out,), rngs=rngs)

    def __call__(self, x, cache=None):
        """[B, F, H, W, C_in] -> [B, F / stride, ...], and the last frames; before a clip are frames of zeros."""
        if self.history:
            if cache is None:
                x = jnp.pad(x, ((0, 0), (self.history, 0), (0, 0), (0, 0), (0, 0)))
            else:
                x = jnp.concatenate([cache, x], axis=1)
            cache = x[:, x.shape[1] - self.history :]
        y = conv3d(x, gathered(self.kernel, x.dtype), stride=self.stride)
        return y + gathered(self.bias, x.dtype), cache


class Linear(nnx.Module):
    """A matrix on the channels, the same for every pixel."""

    def __init__(self, C_in: int, C_out: int, *, init=fan_in_init, bias_init=None, rngs: RngKeys):
        self.kernel = weight(init, (C_in, C_out), rngs=rngs)
        self.bias = weight(bias_init or jax.nn.initializers.zeros, (C_out,), rngs=rngs)

    def __call__(self, x):
        return x @ gathered(self.kernel, x.dtype) + gathered(self.bias, x.dtype)


class Norm(nnx.Module):
    """Divide each pixel's channels by their root mean square, in float32; scale by a learned weight."""

    def __init__(self, C: int, *, rngs: RngKeys):
        self.scale = weight(jax.nn.initializers.ones, (C,), rngs=rngs)

    def __call__(self, x):
        y = x.astype(jnp.float32)
        # The floor only bounds the gradient at a pixel of zeros.
        square = jnp.sum(jnp.square(y), axis=-1, keepdims=True) + 1e-12
        scale = gathered(self.scale, jnp.float32) * math.sqrt(x.shape[-1])
        return (y * jax.lax.rsqrt(square) * scale).astype(x.dtype)


class Downsample(nnx.Module):
    """Halve rows and columns, and frames too if `temporal`; a clip's first frame stays a frame of its own."""

    def __init__(self, C: int, *, temporal: bool, rngs: RngKeys):
        self.space = CausalConv(C, C, (1, 3, 3), stride=(1, 2, 2), rngs=rngs)
        sizes = {"kernel": (3, 1, 1), "stride": (2, 1, 1)}
        self.time = CausalConv(C, C, **sizes, init=identity_init, rngs=rngs) if temporal else None

    def __call__(self, x, cache=None):
        x, _ = self.space(x)
        if self.time is None:
            return x, None
        if cache is not None:
            return self.time(x, cache)
        first = x[:, :1]
        rest, cache = self.time(x[:, 1:], first)
        return jnp.concatenate([first, rest], axis=1), cache


class Upsample(nnx.Module):
    """Double rows and columns, and frames too if `temporal`; a clip's first frame stays one frame.

    That first frame is no history for the frames after it: they see zeros in its place.
    """

    def __init__(self, C_in: int, C_out: int, *, temporal: bool, rngs: RngKeys):
        self.time = CausalConv(C_in, 2 * C_in, (3, 1, 1), init=identity_init, rngs=rngs) if temporal else None
        self.space = CausalConv(C_in, C_out, (1, 3, 3), rngs=rngs)

    def __call__(self, x, cache=None):
        if self.time is not None:
            first, rest = (x[:, :1], x[:, 1:]) if cache is None else (x[:, :0], x)
            pairs, cache = self.time(rest, cache)
            if rest.shape[1]:
                pairs = merge(jnp.stack(jnp.split(pairs, 2, axis=-1), axis=2), 1)
                x = jnp.concatenate([first, pairs], axis=1)
        return self.space(repeat_pixels(x))[0], cache


def split(x, axis: int, size: int):
    """Axis of n elements -> two axes of n / size and size. One axis a reshape: its shards stay with the first."""
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])


def merge(x, axis: int, axes: int = 2):
    """Axes from this one on -> one axis; inverts `split`."""
    return jax.lax.collapse(x, axis, axis + axes)


def repeat_pixels(x):
    """Each pixel four times, [B, F, H, W, C] -> [B, F, 2H, 2W, C]."""
    for axis in (2, 3):
        x = jnp.expand_dims(x, axis + 1)
        x = merge(jnp.concatenate([x, x], axis=axis + 1), axis)
    return x


def average_down(x, C_out: int, *, frames: int, side: int):
    """Fold blocks of frames x side x side pixels into channels and average these in groups down to C_out.

    A clip's first frame is a block of its own, filled up with zeros in front.
    """
    x = jnp.pad(x, ((0, 0), (x.shape[1] % frames, 0), (0, 0), (0, 0), (0, 0)))
    x = split(split(split(x, 3, side), 2, side), 1, frames)  # [B, F, f, H, h, W, w, C]
    x = merge(x.transpose(0, 1, 3, 5, 7, 2, 4, 6), 4, axes=4)
    return jnp.mean(split(x, 4, x.shape[4] // C_out).astype(jnp.float32), axis=-1).astype(x.dtype)


def repeat_up(x, C_out: int, *, frames: int, side: int, first: bool):
    """Repeat channels and unfold them into blocks of frames x side x side pixels.

    Args:
      first: x begins a clip, whose first frame becomes one frame.
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
    """Invert `pixel_unshuffle`."""
    x = split(split(x, 4, patch), 4, patch)  # [B, F, H, W, C, w, h]
    return merge(merge(x.transpose(0, 1, 2, 6, 3, 5, 4), 4), 2)
