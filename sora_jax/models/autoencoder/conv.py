"""Causal 3-D convolution, and the layers that change a video's size in time and space.

A layer that looks back in time takes a `cache`, the last frames of its previous call, and returns the one for its
next call; None begins a clip. A whole clip and a clip in chunks run the same code.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.mesh import num_shards, spec
from sora_jax.kernels import ops
from sora_jax.kernels.conv import by_frame
from sora_jax.models.autoencoder.pixels import merge, repeat_pixels
from sora_jax.models.layers.params import RngKeys

SHARD_FROM = 2**16  # elements of a weight; smaller ones are replicated, which is cheaper than to gather them


def weight(init, shape: tuple[int, ...], *, rngs: RngKeys) -> nnx.Param:
    """A float32 weight; a big one is split over "embed" along its last dimension that divides evenly.

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
    """The whole weight on every chip, cast before it is sent, which halves the bytes in bfloat16."""
    value = param[...].astype(dtype)
    if jax.typeof(value).sharding.mesh.empty:
        return value
    return jax.reshard(value, jax.P())


def fan_in_init(key, shape, dtype, out_sharding=None):
    """A uniform kernel [..., C_in, C_out] whose outputs have the variance of its inputs."""
    bound = math.sqrt(3 / math.prod(shape[:-1]))
    # Drawn flat: XLA:CPU compiles a generator of a five-dimensional array slowly.
    kernel = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)
    return kernel if out_sharding is None else jax.reshard(kernel, out_sharding)


def identity_init(key, shape, dtype, out_sharding=None):
    """A kernel [K, 1, 1, C_in, C_out] that copies the newest frame to every C_in of its outputs."""
    del key
    *taps, C_in, C_out = shape
    kernel = jnp.zeros((*taps, C_in, C_out), dtype)
    kernel = kernel.at[-1, 0, 0].set(jnp.tile(jnp.eye(C_in, dtype=dtype), (1, C_out // C_in)))
    return kernel if out_sharding is None else jax.reshard(kernel, out_sharding)


def conv3d(x: jax.Array, kernel: jax.Array, *, stride: tuple[int, int, int]) -> jax.Array:
    """A convolution without padding in time. In space it is padded as Wan's: "same", or at the end for stride 2.

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
    """A convolution whose output frames depend on no later input frame.

    Args:
      kernel, stride: over frames, rows and columns.
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
        self.history = kernel[0] - stride[0]  # frames in the cache
        self.kernel = weight(init, (*kernel, C_in, C_out), rngs=rngs)
        self.bias = weight(jax.nn.initializers.zeros, (C_out,), rngs=rngs)

    def __call__(self, x, cache=None):
        """x [B, F, H, W, C_in] -> ([B, F / stride, ...], cache). A clip is preceded by frames of zeros."""
        if self.history:
            if cache is None:
                x = jnp.pad(x, ((0, 0), (self.history, 0), (0, 0), (0, 0), (0, 0)))
            else:
                x = jnp.concatenate([cache, x], axis=1)
            cache = x[:, x.shape[1] - self.history :]
        y = conv3d(x, gathered(self.kernel, x.dtype), stride=self.stride)
        return y + gathered(self.bias, x.dtype), cache


class Linear(nnx.Module):
    """A linear layer over the channels of each pixel."""

    def __init__(self, C_in: int, C_out: int, *, init=fan_in_init, bias_init=None, rngs: RngKeys):
        self.kernel = weight(init, (C_in, C_out), rngs=rngs)
        self.bias = weight(bias_init or jax.nn.initializers.zeros, (C_out,), rngs=rngs)

    def __call__(self, x):
        return x @ gathered(self.kernel, x.dtype) + gathered(self.bias, x.dtype)


class Norm(nnx.Module):
    """RMSNorm over the channels of each pixel, in float32."""

    def __init__(self, C: int, *, rngs: RngKeys):
        self.scale = weight(jax.nn.initializers.ones, (C,), rngs=rngs)

    def __call__(self, x):
        y = x.astype(jnp.float32)
        # The constant bounds the gradient at a pixel of zeros.
        square = jnp.sum(jnp.square(y), axis=-1, keepdims=True) + 1e-12
        scale = gathered(self.scale, jnp.float32) * math.sqrt(x.shape[-1])
        return (y * jax.lax.rsqrt(square) * scale).astype(x.dtype)


class Downsample(nnx.Module):
    """Halve rows and columns, and frames too if `temporal`; a clip's first frame is kept."""

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
    """Double rows and columns, and frames too if `temporal`; a clip's first frame is kept.

    The frames after it see zeros in its place.
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
