"""Norms over the last dimension, in float32."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.kernels.ops import mean
from sora_jax.models.layers.matmul import scale_by
from sora_jax.models.layers.params import sharded


class RMSNorm(nnx.RMSNorm):
    """x over the root of its mean square, times a scale; x [..., D] -> float32."""

    def __call__(self, x):
        return scale_by(normalize(x.astype(jnp.float32), self.epsilon, False), self.scale[...])


class LayerNorm(nnx.LayerNorm):
    """(x - mean) / standard deviation, times scale plus bias if it has them; x [..., D] -> float32."""

    def __call__(self, x):
        y = normalize(x.astype(jnp.float32), self.epsilon, True)
        return y if self.scale is None else scale_by(y, self.scale[...]) + self.bias[...]


def rms_norm(d: int, axis: str, *, epsilon: float, rngs) -> RMSNorm:
    """RMSNorm over the last dimension of size d, with a scale laid out by `axis`."""
    return RMSNorm(d, epsilon=epsilon, scale_init=sharded(jax.nn.initializers.ones, axis), rngs=rngs)


def layer_norm(d: int, *, epsilon: float, affine: bool, rngs) -> LayerNorm:
    """LayerNorm over the last dimension of size d; affine: with scale and bias."""
    return LayerNorm(d, epsilon=epsilon, use_scale=affine, use_bias=affine, rngs=rngs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def normalize(x, epsilon, centred):
    """x [..., D], minus its mean if `centred`, over the root of (its mean square + epsilon)."""
    return _forward(x, epsilon, centred)[0]


def _forward(x, epsilon, centred):
    square = mean(x, x)
    if centred:
        middle = mean(x)
        x, square = x - middle, jnp.maximum(square - jnp.square(middle), 0)
    factor = jax.lax.rsqrt(square + epsilon)
    y = x * factor
    return y, (y, factor)


def _backward(epsilon, centred, saved, dy):
    del epsilon
    y, factor = saved
    dx = dy - y * mean(dy, y)
    if centred:
        dx = dx - mean(dy)
    return (dx * factor,)


normalize.defvjp(_forward, _backward)
