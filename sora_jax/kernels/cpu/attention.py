"""The loop over heads of chunked attention as XLA:CPU runs it fastest."""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from sora_jax.kernels.cpu.bits import as_bits, from_bits


def map_heads(function, segment_ids, *arrays):
    """function(segment_ids, *arrays) of each head of each packed sequence, one at a time.

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

    def write(number, results):
        b, a = jnp.divmod(number, A)
        return jax.tree.map(lambda whole, one: whole.at[b, :, a].set(one), results, one_head(b, a))

    shapes = jax.eval_shape(one_head, 0, 0)
    empty = jax.tree.map(lambda x: jnp.zeros((B, len(x), A, *x.shape[1:]), x.dtype), shapes)
    results = jax.lax.fori_loop(0, B * A, write, empty)
    return jax.tree.map(lambda x: from_bits(jnp.swapaxes(x, 1, 2)), results)


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
