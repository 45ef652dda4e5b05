"""The product of activations and a weight, and its bias and scale, with their gradients.

A weight that is split over several mesh axes is gathered over one axis after the other, and its gradient is summed
likewise. In one go the TPU's compiler uses all-reduces for both, which send twice as much (docs/notes/kernels.md).
"""

import functools

import jax
import jax.numpy as jnp

from sora_jax.kernels.ops import contract, multiply_gradients, sum_rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def matmul(out_sharding, x, w):
    """x [..., D] times w [D, M], [..., M] in x's type, laid out as `out_sharding`."""
    layout = _gathered_layout(w, out_sharding)
    return contract(x, _partly_gathered(w, layout), ((x.ndim - 1,), (0,)), out_sharding)


def _backward(out_sharding, saved, dy):
    x, w = saved
    stored, layout = jax.typeof(w).sharding.spec, _gathered_layout(w, out_sharding)
    x_layout = jax.typeof(x).sharding.spec
    dx = contract(dy, _partly_gathered(w, layout), ((dy.ndim - 1,), (1,)), x_layout)
    leading = tuple(range(1, x.ndim)), tuple(range(x.ndim - 1))
    dw = contract(jnp.moveaxis(x, -1, 0), dy, leading, layout)
    return dx, dw if layout == stored else jax.reshard(jax.lax.optimization_barrier(dw), stored)


matmul.defvjp(lambda out_sharding, x, w: (matmul(out_sharding, x, w), (x, w)), _backward)


@jax.custom_vjp
def add_bias(y, bias):
    """y [..., D] + bias [D]."""
    return y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), None), lambda _, dy: (dy, sum_rows(dy)))


@jax.custom_vjp
def scale_by(x, scale):
    """x [..., D] * scale [D], float32."""
    return x * scale


scale_by.defvjp(lambda x, scale: (x * scale, (x, scale)), lambda saved, dy: multiply_gradients(*saved, dy))


def _partly_gathered(w, layout):
    """The weight in `layout`, from which the product gathers the rest."""
    # The barrier keeps the compiler from merging both gathers.
    return w if layout == jax.typeof(w).sharding.spec else jax.lax.optimization_barrier(jax.reshard(w, layout))


def _gathered_layout(w, out_sharding):
    """The weight's layout with one mesh axis per dimension; a dimension that splits the product keeps its axes."""
    d_in, d_out = jax.typeof(w).sharding.spec
    kept = out_sharding and _real_axes(out_sharding[-1]) == _real_axes(d_out)
    return jax.P(_first(d_in), d_out if kept else _first(d_out))


def _first(axes):
    return axes[0] if isinstance(axes, tuple) else axes


def _real_axes(axes) -> list[str]:
    """The axes of a size above 1; types of arrays may leave out the others."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return [axis for axis in (axes if isinstance(axes, tuple) else (axes,)) if axis and sizes[axis] > 1]
