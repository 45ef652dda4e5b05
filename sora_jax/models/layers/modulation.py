"""Modulation by time: features of a time, and the row of each patch's time out of a table."""

import jax
import jax.numpy as jnp

from sora_jax.core.mesh import spec
from sora_jax.kernels import ops

SUM_UP_TO = 4  # times of a packed sequence up to which a sum selects; beyond it a matrix product


def sinusoid(t, width: int):
    """Sinusoidal features of a scalar: [cos, sin] of t * 10000^(-2 i / width), [...] -> [..., width] float32.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, with the cosines first.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def select_modulation(table, one_hot):
    """For each patch the row of its time: table [B, T, D], one_hot [B, N, T] -> [B, N, D] float32, exact.

    A product, not a gather, whose transpose would be a scatter. For few times a sum: XLA fuses it into its use,
    and [B, N, D] is never stored.
    """
    if table.shape[1] <= SUM_UP_TO:
        return _select_by_sum(table, one_hot)
    return jnp.einsum("bnt,btd->bnd", one_hot, table, precision="highest", out_sharding=spec("batch tokens ."))


_select_by_sum = jax.custom_vjp(ops.select)
_select_by_sum.defvjp(
    lambda table, one_hot: (ops.select(table, one_hot), (table, one_hot)),
    # Which time a patch has is data, without a gradient.
    lambda saved, dy: (ops.select_gradient(*saved, dy), jnp.zeros_like(saved[1])),
)
