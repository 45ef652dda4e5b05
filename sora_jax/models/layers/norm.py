"""Norms over the last dimension, in float32."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.kernels.ops import mean
from sora_jax.models.layers.matmul import scale_by, split_heads
from sora_jax.models.layers.params import sharded


class RMSNorm(nnx.RMSNorm):
    """x over the root of its mean square, times a scale; x [..., D], or with `heads` [..., A, K] -> float32."""

    def __call__(self, x, heads=0):
        scale = split_heads(self.scale[...], heads_out=heads)
        return scale_by(normalize(x.astype(jnp.float32), self.epsilon, False, scale.ndim), scale)


class LayerNorm(nnx.LayerNorm):
    """(x - mean) / standard deviation, times scale plus bias if it has them; x [..., D] -> float32."""

    def __call__(self, x):
        y = normalize(x.astype(jnp.float32), self.epsilon, True, 1)
        return y if self.scale is None else scale_by(y, self.scale[...]) + self.bias[...]


def rms_norm(d: int, axis: str, *, epsilon: float, rngs) -> RMSNorm:
    """RMSNorm over the last dimension of size d, with a scale laid out by `axis`."""
    return RMSNorm(d, epsilon=epsilon, scale_init=sharded(jax.nn.initializers.ones, axis), rngs=rngs)


def layer_norm(d: int, *, epsilon: float, affine: bool, rngs) -> LayerNorm:
    """LayerNorm over the last dimension of size d; affine: with scale and bias."""
    return LayerNorm(d, epsilon=epsilon, use_scale=affine, use_bias=affine, rngs=rngs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def normalize(x, epsilon, centred, dims):
    """x [..., D], minus its mean if `centred`, over the root of (its mean square + epsilon); means over `dims`."""
    return _forward(x, epsilon, centred, dims)[0]


def _forward(x, epsilon, centred, dims):
    square = mean(x, x, dims)
    if centred:
        middle = mean(x, dims=dims)
        x, square = x - middle, jnp.maximum(square - jnp.square(middle), 0)
    factor = jax.lax.rsqrt(square + epsilon)
    y = x * factor
    return y, (y, factor)


def _backward(epsilon, centred, dims, saved, dy):
    del epsilon
    y, factor = saved
    dx = dy - y * mean(dy, y, dims)
    if centred:
        dx = dx - mean(dy, dims=dims)
    return (dx * factor,)


normalize.defvjp(_forward, _backward)
