"""Operations that XLA needs in another form on some backends. Here stand the plain forms, and the one choice.

The choice is made when a function is traced, by the devices of the current mesh.
"""

import functools

import jax
import jax.numpy as jnp

from sora_jax.core.mesh import platform
from sora_jax.kernels import conv
from sora_jax.kernels.cpu import attention as cpu_attention
from sora_jax.kernels.cpu import bits as cpu_bits
from sora_jax.kernels.cpu import conv as cpu_conv
from sora_jax.kernels.cpu import linear as cpu_linear
from sora_jax.kernels.tpu import rotary as tpu_rotary


def on_cpu(cpu_form, *, one_device=False):
    """A decorator: on a mesh of CPUs run `cpu_form` instead; with `one_device` only on a single one."""

    def decorate(plain):
        @functools.wraps(plain)
        def choose(*args, **options):
            alone = jax.sharding.get_abstract_mesh().size <= 1
            form = cpu_form if platform() == "cpu" and (alone or not one_device) else plain
            return form(*args, **options)

        return choose

    return decorate


@on_cpu(cpu_linear.contract)
def contract(a, b, contracting, out_sharding):
    """The product of a and b over the dimensions `contracting`, a pair of tuples, in a's type."""
    return jax.lax.dot_general(a, b, (contracting, ((), ())), out_sharding=out_sharding)


@on_cpu(cpu_linear.sum_rows)
def sum_rows(x, kept=1):
    """The sum over all dimensions but the last one, or the last `kept`: [..., D] -> [D]."""
    return jax.lax.reduce_sum(x, tuple(range(x.ndim - kept)))


@on_cpu(cpu_linear.multiply_gradients, one_device=True)
def multiply_gradients(x, scale, dy):
    """The gradients of x [..., D] * scale [D], or of x [..., A, K] * scale [A, K]."""
    return jax.vjp(jnp.multiply, x, scale)[1](dy)


@on_cpu(cpu_linear.mean, one_device=True)
def mean(x, y=None, dims=1):
    """The mean of x, or of x * y, over the last dimension, or the last `dims`, which stay as 1."""
    return jnp.mean(x if y is None else x * y, axis=tuple(range(-dims, 0)), keepdims=True)


def select(table, one_hot):
    """The sum of the rows of table [B, T, D], weighted by one_hot [B, N, T] -> [B, N, D]; T is small."""
    return sum(one_hot[:, :, t, None] * table[:, None, t] for t in range(table.shape[1]))


@on_cpu(cpu_linear.select_gradient, one_device=True)
def select_gradient(table, one_hot, dy):
    """The gradient of `select` for its table."""
    return jax.vjp(lambda table: select(table, one_hot), table)[1](dy)[0]


@on_cpu(cpu_linear.cos_sin)
def cos_sin(angles):
    """(cosines, sines) of the angles."""
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cos, sin):
    """x [B, N, A, K] with the pairs (i, i + K / 2) of each head turned by angles, in x's type; float32 inside.

    Args:
      cos, sin: of the angles, [B, N, K / 2] float32.
    """
    if platform() == "tpu":
        return tpu_rotary.rotate(x, cos, sin)
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = (half.astype(jnp.float32) for half in jnp.split(x, 2, axis=-1))
    rotated = first * cos - second * sin, first * sin + second * cos
    # Each half is cast before they are joined, or all of x would be stored as float32, here and in the gradient.
    return jnp.concatenate([half.astype(x.dtype) for half in rotated], axis=-1)


@on_cpu(cpu_conv.conv3d)
def conv3d(x, kernel, stride, padding):
    """A convolution over frames, rows and columns.

    Args:
      x: [B, F, H, W, C_in]. kernel: [K_f, K_h, K_w, C_in, C_out].
      stride: over frames, rows and columns. padding: (before, after) of rows and of columns; frames have none.
    """
    if platform() == "tpu" and conv.few_clips(x):
        return conv.taps_as_channels(x, kernel, stride, padding)
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x, kernel, stride, [(0, 0), *padding], dimension_numbers=layout)


@on_cpu(cpu_attention.map_heads)
def map_heads(function, segment_ids, *arrays):
    """function(segment_ids, *arrays) of each head of each packed sequence.

    Args:
      segment_ids: arrays [B, N]; the function is given [N].
      arrays: [B, A, ...], and so are the results; the function takes and gives them without [B, A].
    """
    # Without this barrier XLA hoists the full N x M mask out of the loop over chunks and stores it.
    segment_ids, arrays = jax.lax.optimization_barrier((segment_ids, arrays))
    heads = jax.vmap(function, in_axes=(None, *(0 for _ in arrays)))
    # One sequence after the other: loops whose turns depend on its segments can't be batched.
    return jax.lax.map(lambda sequence: heads(*sequence), (segment_ids, *arrays))


@on_cpu(cpu_attention.sum_over_queries)
def sum_over_queries(x, weights):
    """x [N, K], weights [N, M] -> x^T weights [K, M] float32."""
    return jnp.matmul(x.T, weights, preferred_element_type=jnp.float32)


@on_cpu(cpu_bits.round_to)
def round_to(x, dtype):
    """x [...] float32 in `dtype`."""
    return x.astype(dtype)


@on_cpu(cpu_bits.as_bits)
def as_bits(x):
    """x as a loop is to slice it; `from_bits` inverts it."""
    return x


from_bits = cpu_bits.from_bits
