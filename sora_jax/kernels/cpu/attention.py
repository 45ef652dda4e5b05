"""The loops of chunked attention as XLA:CPU runs them fastest."""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from sora_jax.kernels.cpu.bits import as_bits, from_bits

TWO_LOOPS_FROM = 2**22  # logits of a head; below, a second loop costs more than it gains


def map_heads(function, segment_ids, *arrays):
    """function(segment_ids, *arrays) of each head of each packed sequence, one or two at a time.

    Args:
      segment_ids: arrays [B, N]; the function is given [N].
      arrays: [B, A, ...], and so are the results; the function takes and gives them without [B, A].
    """
    B, A = arrays[0].shape[:2]
    # Tokens come before heads, as in the layers around: slicing a head is cheap. A transposition of the whole
    # would be fused into the layer that made the array, and slow it down several times.
    tokens_first = [as_bits(jnp.swapaxes(x, 1, 2)) for x in arrays]
    # Without this barrier XLA hoists the full N x M mask out of the loop and stores it.
    segment_ids, arrays = jax.lax.optimization_barrier((segment_ids, tokens_first))

    def one_head(b, a):
        results = function([x[b] for x in segment_ids], *(from_bits(x[b, :, a]) for x in arrays))
        return jax.tree.map(as_bits, results)

    shapes = jax.eval_shape(one_head, 0, 0)

    def loop(first, heads):
        def write(number, results):
            b, a = jnp.divmod(number, heads)
            return jax.tree.map(lambda whole, one: whole.at[b, :, a].set(one), results, one_head(b, first + a))

        empty = jax.tree.map(lambda x: jnp.zeros((B, len(x), heads, *x.shape[1:]), x.dtype), shapes)
        return jax.lax.fori_loop(0, B * heads, write, empty)

    loops = num_loops(A, arrays[0].shape[1] * arrays[1].shape[1])
    results = [loop(n * A // loops, A // loops) for n in range(loops)]
    return jax.tree.map(lambda *parts: from_bits(jnp.swapaxes(jnp.concatenate(parts, 2), 1, 2)), *results)


def num_loops(heads, logits):
    """Number of loops that share the heads. XLA runs two independent loops at once, each on a core or so.

    Several devices already fill the cores; there, and for few logits, two loops only compile longer.
    """
    one_device = jax.sharding.get_abstract_mesh().size <= 1
    return 2 if logits >= TWO_LOOPS_FROM and heads % 2 == 0 and one_device else 1


def sum_over_queries(x, weights):
    """x [N, K], weights [N, M] -> x^T weights [K, M] float32.

    The summed dimension is made the last one in memory, for the small factor x.
    """

    def transposed_in_memory(x):
        # The result is transposed later. Without the layout XLA would swap the factors instead, which is slower,
        # and its runtime has no such product of bfloat16.
        return with_layout_constraint(x, Layout((0, 1)))

    product = jnp.matmul(transposed_in_memory(x.T), weights, preferred_element_type=jnp.float32)
    return transposed_in_memory(product)
