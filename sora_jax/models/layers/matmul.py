"""The product of activations and a weight, and its bias, with their gradients, as each platform runs them fastest.

XLA's CPU backend has a fast product of bfloat16 only with a float32 result, and where the summed dimension is the
last of the first factor in memory: 2.2 times as fast, forwards and backwards (docs/performance.md). Elsewhere the
accumulator is float32 anyway, and a float32 result would double what chips send each other to sum it up.

A weight that lies over several mesh axes is gathered over one after the other, and its gradient is summed so. In
one go the TPU's compiler does both with all-reduces, which send twice as much (docs/scaling.md).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from sora_jax.core.mesh import platform


def dot_general(x, w, dimension_numbers, *, precision=None, out_sharding=None):
    """`jax.lax.dot_general` of x [..., D] and w [D, M], in x's type.

    Raises: ValueError for other dimensions.
    """
    if dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())) or w.ndim != 2:
        raise ValueError(f"a product over the last dimension of x and the first of w, not {dimension_numbers}")
    return _product(out_sharding, precision, x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(out_sharding, precision, x, w):
    first = _first_axes(w, out_sharding)
    return _contract(x, _half_gathered(w, first), ((x.ndim - 1,), (0,)), precision, out_sharding)


def _forward(out_sharding, precision, x, w):
    return _product(out_sharding, precision, x, w), (x, w)


def _backward(out_sharding, precision, saved, dy):
    x, w = saved
    layout, first = jax.typeof(w).sharding.spec, _first_axes(w, out_sharding)
    dx = _contract(dy, _half_gathered(w, first), ((dy.ndim - 1,), (1,)), precision, jax.typeof(x).sharding.spec)
    rows = tuple(range(1, x.ndim)), tuple(range(x.ndim - 1))
    dw = _contract(jnp.moveaxis(x, -1, 0), dy, rows, precision, first)
    return dx, dw if first == layout else jax.reshard(jax.lax.optimization_barrier(dw), layout)


_product.defvjp(_forward, _backward)


def _contract(a, b, contracting, precision, out_sharding):
    """The product in a's type, a's summed dimensions last."""

    def product(a, b, **options):
        return jax.lax.dot_general(
            a, b, (contracting, ((), ())), precision=precision, out_sharding=out_sharding, **options
        )

    def on_cpu(a, b):
        if jax.sharding.get_abstract_mesh().size <= 1:  # over several devices it would be gathered first
            a = with_layout_constraint(a, Layout(tuple(range(a.ndim))))
        return product(a, b, preferred_element_type=jnp.float32).astype(a.dtype)

    return on_cpu(a, b) if platform() == "cpu" else product(a, b)


@jax.custom_vjp
def add_bias(y, bias):
    """y [..., D] + bias [D]. A CPU sums the bias's gradient as float32; bfloat16 takes it ten times as long."""
    return y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))


def _bias_backward(_, dy):
    wide = dy.astype(jnp.float32) if platform() == "cpu" else dy
    return dy, jax.lax.reduce_sum(wide, tuple(range(dy.ndim - 1))).astype(dy.dtype)


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), None), _bias_backward)


@jax.custom_vjp
def scale_by(x, scale):
    """x [..., D] * scale [D], float32. On a CPU the scale's gradient is a product, 40 times as fast as its sum."""
    return x * scale


def _scale_backward(saved, dy):
    x, scale = saved
    if platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1:
        return dy * scale, jnp.einsum("...d,...d->d", dy, x)
    return jax.vjp(jnp.multiply, x, scale)[1](dy)


scale_by.defvjp(lambda x, scale: (x * scale, (x, scale)), _scale_backward)


def _half_gathered(w, first):
    """The weight over the first of the mesh axes of each of its dimensions; the product gathers over these."""
    # A barrier, or the compiler would merge both gathers.
    return w if first == jax.typeof(w).sharding.spec else jax.lax.optimization_barrier(jax.reshard(w, first))


def _first_axes(w, out_sharding):
    """What of a weight's layout the product is to see: the whole of what its result is split over, too."""
    d_in, d_out = jax.typeof(w).sharding.spec
    kept = out_sharding and _split_over(out_sharding[-1]) == _split_over(d_out)
    return jax.P(_first(d_in), d_out if kept else _first(d_out))


def _first(axes):
    return axes[0] if isinstance(axes, tuple) else axes


def _split_over(axes) -> list[str]:
    """Those that have a size; types of arrays may leave out the others."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return [axis for axis in (axes if isinstance(axes, tuple) else (axes,)) if axis and sizes[axis] > 1]
