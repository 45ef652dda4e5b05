"""Attention with a bias that depends on the distance key - query, for packed sequences of short texts.

The bias is kept as one number for each distance and head, and only the keys that a text can reach are visited.
"""

import jax
import jax.numpy as jnp

from sora_jax.core.mesh import spec
from sora_jax.kernels.reference import reference_attention

QUERIES = 256  # of a block, in a sequence that is longer than that and than one text


def relative_attention(q, k, v, segment_ids, bias_of, *, reach: int):
    """Softmax attention within segments, each a run of at most `reach` tokens.

    Args:
      q, k, v: [B, S, A, K].
      segment_ids: [B, S] int32.
      bias_of: distances [n] int32 -> the bias of each head that is added to the logits, [A, n] float32.
    Returns: [B, S, A, K], laid out as "batch tokens heads .".
    """
    layout, S = "batch . heads_all .", q.shape[1]  # texts are short: no ring
    blocks = max(QUERIES, reach) < S
    N, M = (QUERIES, QUERIES + 2 * reach) if blocks else (S, S)
    first = 1 - N - (reach if blocks else 0)
    bias = jax.reshard(bias_of(jnp.arange(first, first + N + M - 1)), spec("heads_all ."))

    def attend(q, k, v, segment_ids, bias):
        bias = toeplitz(bias, N, M)[None]
        if blocks:
            return _attend_in_blocks(q, k, v, segment_ids, bias, reach)
        return reference_attention(q, k, v, segment_ids, segment_ids, bias)

    arrays = [jax.reshard(x, spec(layout)) for x in (q, k, v)]
    segment_ids = jax.reshard(segment_ids, spec("batch ."))
    y = jax.shard_map(
        attend,
        in_specs=(*(spec(layout) for _ in arrays), spec("batch ."), spec("heads_all .")),
        out_specs=spec(layout),
    )(*arrays, segment_ids, bias)
    return jax.reshard(y, spec("batch tokens heads ."))


def _attend_in_blocks(q, k, v, segment_ids, bias, reach):
    B, S, A, K = q.shape
    blocks = -(-S // QUERIES)
    fill = blocks * QUERIES - S
    q = jnp.pad(q, ((0, 0), (0, fill), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (reach, reach + fill), (0, 0), (0, 0))) for x in (k, v))
    segment_ids = jnp.pad(segment_ids, ((0, 0), (reach, reach + fill)), constant_values=-1)
    width = QUERIES + 2 * reach

    @jax.checkpoint
    def block(start):
        def part(x, first, size):
            return jax.lax.dynamic_slice_in_dim(x, first, size, axis=1)

        keys = (part(x, start, width) for x in (k, v))
        q_segment_ids, kv_segment_ids = part(segment_ids, start + reach, QUERIES), part(segment_ids, start, width)
        return reference_attention(part(q, start, QUERIES), *keys, q_segment_ids, kv_segment_ids, bias)

    y = jax.lax.map(block, QUERIES * jnp.arange(blocks))
    return jnp.moveaxis(y, 0, 1).reshape(B, -1, A, K)[:, :S]


def toeplitz(values, N: int, M: int):
    """[A, N + M - 1] -> [A, N, M] with element (n, m) = values[m - n + N - 1], without a gather."""
    A, width = values.shape
    rows = jnp.tile(jnp.pad(values, ((0, 0), (0, 1))), N)[:, : N * width]
    return rows.reshape(A, N, width)[:, :, N - 1 :][:, :, :M]
