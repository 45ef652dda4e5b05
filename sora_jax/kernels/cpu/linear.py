"""Matrix products and sums of linear layers and norms. XLA:CPU sums along a row element by element, so that sums
are written as products here, and has a fast product of bfloat16 only with a float32 result.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def contract(a, b, contracting, out_sharding):
    """`ops.contract` with a's summed dimensions last in memory and a float32 sum, rounded once."""
    if jax.sharding.get_abstract_mesh().size <= 1:  # a layout on several devices would gather first
        a = with_layout_constraint(a, Layout(tuple(range(a.ndim))))
    options = {"out_sharding": out_sharding, "preferred_element_type": jnp.float32}
    return jax.lax.dot_general(a, b, (contracting, ((), ())), **options).astype(a.dtype)


def sum_rows(x, kept=1):
    """`ops.sum_rows` in float32: bfloat16 is summed in windows, ten times as slowly."""
    return jax.lax.reduce_sum(x.astype(jnp.float32), tuple(range(x.ndim - kept))).astype(x.dtype)


def multiply_gradients(x, scale, dy):
    """`ops.multiply_gradients`, the sum as a product."""
    x, flat = (a.reshape(*a.shape[: a.ndim - scale.ndim], -1) for a in (x, dy))
    return dy * scale, jnp.einsum("...d,...d->d", flat, x).reshape(scale.shape)


def mean(x, y=None, dims=1):
    """`ops.mean`, the sum as a product."""
    x, y = (a if a is None else a.reshape(*a.shape[:-dims], -1) for a in (x, y))
    D = x.shape[-1]
    total = x @ jnp.ones(D, x.dtype) if y is None else jnp.einsum("...d,...d->...", x, y)
    return total.reshape(*total.shape, *(1,) * dims) / D


def select_gradient(table, one_hot, dy):
    """`ops.select_gradient` as a product."""
    del table
    return jnp.einsum("bnt,bnd->btd", one_hot, dy, precision="highest")


def cos_sin(angles):
    """`ops.cos_sin` by a loop of two turns.

    XLA:CPU would otherwise compute both anew in every rotation of every layer; a barrier does not stop it.
    """
    cos, sin = jax.lax.map(lambda sine: jnp.where(sine, jnp.sin(angles), jnp.cos(angles)), jnp.arange(2) == 1)
    return cos, sin
