"""The MLP of a transformer block."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.mesh import spec
from sora_jax.models.layers.lora import adaptable_linear, no_adapter

CUBIC = 0.044715  # the coefficient of x^3 in GELU's approximation by tanh


class Mlp(nnx.Module):
    """Linear, GELU (by tanh if `approximate`), linear: [..., N, D] -> [..., N, D]."""

    def __init__(self, D: int, M: int, *, dtype, approximate=True, adapter_of=no_adapter, rngs):
        self.approximate = approximate
        self.up = adaptable_linear(D, M, "embed mlp", dtype=dtype, adapter=adapter_of("mlp.up"), rngs=rngs)
        self.down = adaptable_linear(M, D, "mlp embed", dtype=dtype, adapter=adapter_of("mlp.down"), rngs=rngs)

    def __call__(self, x):
        h = gelu(self.approximate, self.up(x, out_sharding=spec("batch tokens mlp")))
        return self.down(h, out_sharding=spec("batch tokens ."))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gelu(approximate, x):
    """GELU of x in float32, rounded once to x's type; the gradient keeps x alone.

    Source: Hendrycks & Gimpel 2016 (arXiv 1606.08415), section 2.
    """
    return jax.nn.gelu(x.astype(jnp.float32), approximate=approximate).astype(x.dtype)


def _gelu_backward(approximate, x, dy):
    if not approximate:
        return jax.vjp(lambda x: jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype), x)[1](dy)
    # With sigmoid(2 u) for (1 + tanh u) / 2: XLA:GPU would share the forward pass's tanh, and store it in float32.
    wide, factor = x.astype(jnp.float32), 2 * math.sqrt(2 / math.pi)
    part = jax.nn.sigmoid(factor * wide * (1 + CUBIC * jnp.square(wide)))
    gradient = part + wide * part * (1 - part) * factor * (1 + 3 * CUBIC * jnp.square(wide))
    return ((dy.astype(jnp.float32) * gradient).astype(x.dtype),)


gelu.defvjp(lambda approximate, x: (gelu(approximate, x), x), _gelu_backward)
