"""The product of activations and a weight, and its bias and scale, with their gradients.

A weight is gathered before its product: left to itself the TPU's compiler makes a loop over the shards of the
weight that adds up the whole result in bfloat16. A weight that is split over several mesh axes is gathered over
one axis after the other, and its gradient is summed likewise. In one go the compiler uses all-reduces for both,
which send twice as much (docs/notes/kernels.md).

Queries, keys and values have a dimension for heads and one for their width as soon as they are computed: a product
writes them in the layout that attention reads, where splitting the width later is a copy on a TPU.
"""

import functools
import itertools

import jax
import jax.numpy as jnp

from sora_jax.kernels.ops import contract, multiply_gradients, sum_rows


def matmul(out_sharding, x, w, *, heads_in=0, heads_out=0):
    """The product of activations and a weight, in x's type.

    Args:
      out_sharding: of the product before it is split into heads.
      x: [..., D], or with `heads_in` = A [..., A, D / A].
      w: [D, M].
    Returns: [..., M], or with `heads_out` = A [..., A, M / A].
    """
    return _matmul(out_sharding, heads_in, heads_out, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _matmul(out_sharding, heads_in, heads_out, x, w):
    last = tuple(range(x.ndim))[-2 if heads_in else -1 :]
    w = split_heads(_gathered(w, _layouts(w, x, heads_in, out_sharding)), heads_in, heads_out)
    if heads_out and out_sharding is not None:
        out_sharding = jax.P(*out_sharding, None)
    return contract(x, w, (last, tuple(range(len(last)))), out_sharding)


def _backward(out_sharding, heads_in, heads_out, saved, dy):
    x, w = saved
    layouts = _layouts(w, x, heads_in, out_sharding)
    in_dims, out_dims = 2 if heads_in else 1, 2 if heads_out else 1
    gathered = split_heads(_gathered(w, layouts), heads_in, heads_out)
    contracted = tuple(range(dy.ndim - out_dims, dy.ndim)), tuple(range(in_dims, in_dims + out_dims))
    dx = contract(dy, gathered, contracted, jax.typeof(x).sharding.spec)
    first = jnp.moveaxis(x, range(x.ndim - in_dims, x.ndim), range(in_dims))
    rows = tuple(range(in_dims, x.ndim)), tuple(range(dy.ndim - out_dims))
    # Summed over one mesh axis by the product's reduce-scatter, then over the others.
    stored, layout = layouts[:2]
    dw = contract(first, dy, rows, _split_spec(layout, heads_in, heads_out))
    dw = jnp.reshape(dw, w.shape, out_sharding=layout)
    return dx, dw if layout == stored else jax.reshard(jax.lax.optimization_barrier(dw), stored)


_matmul.defvjp(
    lambda out_sharding, heads_in, heads_out, x, w: (_matmul(out_sharding, heads_in, heads_out, x, w), (x, w)),
    _backward,
)


@jax.custom_vjp
def add_bias(y, bias):
    """y [..., D] + bias [D], or y [..., A, K] + bias [A, K]."""
    return y + jnp.reshape(bias, (1,) * (y.ndim - bias.ndim) + bias.shape)


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), bias), lambda bias, dy: (dy, sum_rows(dy, bias.ndim)))


@jax.custom_vjp
def scale_by(x, scale):
    """x [..., D] * scale [D], or x [..., A, K] * scale [A, K], float32."""
    return x * scale


scale_by.defvjp(lambda x, scale: (x * scale, (x, scale)), lambda saved, dy: multiply_gradients(*saved, dy))


def split_heads(w, heads_in=0, heads_out=0):
    """A weight or a vector with its first dimension, its last one or both split into (heads, width)."""
    shape = []
    for size, heads in zip(w.shape, (heads_in, heads_out)[-w.ndim :], strict=True):
        shape += [heads, size // heads] if heads else [size]
    return jnp.reshape(w, shape, out_sharding=_split_spec(jax.typeof(w).sharding.spec, heads_in, heads_out))


def _split_spec(spec, heads_in, heads_out):
    axes = []
    for axis, heads in zip(spec, (heads_in, heads_out)[-len(spec) :], strict=True):
        axes += [axis, None] if heads else [axis]
    return jax.P(*axes)


def _gathered(w, layouts):
    """The weight as its product needs it, gathered over one mesh axis after the other."""
    for before, layout in itertools.pairwise(layouts):
        if layout != before:
            # The barrier keeps the compiler from merging the gathers.
            w = jax.lax.optimization_barrier(jax.reshard(w, layout))
    return w


def _layouts(w, x, heads_in, out_sharding):
    """The weight's layouts: as stored, with one mesh axis per dimension, and in the product.

    A dimension that splits the product or its sum keeps its axes.
    """
    d_in, d_out = stored = jax.typeof(w).sharding.spec
    x_axes = jax.typeof(x).sharding.spec[-2 if heads_in else -1]
    keeps_out = bool(out_sharding) and _real_axes(out_sharding[-1]) == _real_axes(d_out)
    keeps_in = _real_axes(x_axes) == _real_axes(d_in)
    first = jax.P(_first(d_in), d_out if keeps_out else _first(d_out))
    return stored, first, jax.P(d_in if keeps_in else None, d_out if keeps_out else None)


def _first(axes):
    return axes[0] if isinstance(axes, tuple) else axes


def _real_axes(axes) -> list[str]:
    """The axes of a size above 1; types of arrays may leave out the others."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return [axis for axis in (axes if isinstance(axes, tuple) else (axes,)) if axis and sizes[axis] > 1]
