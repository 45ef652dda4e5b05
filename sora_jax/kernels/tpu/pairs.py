"""The pairs of a block of queries and a block of keys that a kernel visits: those that share a segment.

Segments are runs, so a block has those from its smallest to its largest id. Pairs are found on the device, in the
order in which the kernel visits them, and their number is the size of its grid: hidden ones are neither fetched
nor stepped over.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

SUBLANES = 8
# A step's place: the row of the batch, the block of queries and that of keys, packed into 31 bits.
BITS = 11
MAX_BLOCKS = 2**BITS
MAX_ROWS = 2 ** (31 - 2 * BITS)
# A step's flags: the first or last of its block (of its row); all, or some pairs of tokens see each other.
FIRST, LAST, FIRST_OF_ROW, LAST_OF_ROW, WHOLE, PARTLY = (1 << n for n in range(6))


def pairs(q_segment_ids, kv_segment_ids, block_q: int, block_kv: int, *, by_query: bool):
    """(places, flags, number): steps of a kernel, [B * N / block_q * M / block_kv] int32, and how many there are.

    Args:
      q_segment_ids, kv_segment_ids: [B, N], [B, M] int32, real ones above 0.
      by_query: whether the steps of a block of queries follow each other, or those of a block of keys. A block
        that meets none has one step, with neither WHOLE nor PARTLY.
    """
    if not by_query:
        q_segment_ids, kv_segment_ids, block_q, block_kv = kv_segment_ids, q_segment_ids, block_kv, block_q
    of_block, of_other = _spans(q_segment_ids, block_q), _spans(kv_segment_ids, block_kv)
    of_block, of_other = [x[:, :, None] for x in of_block], [x[:, None] for x in of_other]
    meet = (of_block[0] <= of_other[1]) & (of_other[0] <= of_block[1])  # [B, blocks, other blocks]
    alone = of_block[2] & of_other[2]
    B, blocks, others = meet.shape
    if max(blocks, others) > MAX_BLOCKS or B > MAX_ROWS:
        raise ValueError(f"{blocks} and {others} blocks of {B} sequences are more than a step's place can hold")
    kinds = jnp.where(meet & alone, WHOLE, jnp.where(meet, PARTLY, 0))
    # A block that meets none still has its result written: 0.
    visited = meet | (~jnp.any(meet, axis=2, keepdims=True) & (jnp.arange(others) == 0))
    row, i, j = (jax.lax.broadcasted_iota(jnp.int32, meet.shape, dim) for dim in range(3))
    order = jnp.where(visited, row << 2 * BITS | i << BITS | j, jnp.iinfo(jnp.int32).max)
    order, kinds = jax.lax.sort((order.ravel(), kinds.ravel()), num_keys=1)
    number = jnp.sum(visited, dtype=jnp.int32)
    block, row = order >> BITS, order >> 2 * BITS
    flags = kinds
    for ids, first, last in ((block, FIRST, LAST), (row, FIRST_OF_ROW, LAST_OF_ROW)):
        changes = ids[1:] != ids[:-1]
        flags |= jnp.where(jnp.pad(changes, (1, 0), constant_values=True), first, 0)
        flags |= jnp.where(jnp.pad(changes, (0, 1), constant_values=True), last, 0)
    i, j = order >> BITS & MAX_BLOCKS - 1, order & MAX_BLOCKS - 1
    return row << 2 * BITS | ((i << BITS | j) if by_query else (j << BITS | i)), flags, number


def _spans(segment_ids, block: int):
    """(smallest, largest real segment, whether all tokens are of one) of each block: [B, blocks]."""
    ids = segment_ids.reshape(len(segment_ids), -1, block)
    most = jnp.iinfo(jnp.int32).max
    smallest = jnp.min(jnp.where(ids > 0, ids, most), axis=-1)
    largest = jnp.max(ids, axis=-1)
    # Of a block of padding the smallest is above the largest of any.
    return smallest, largest, jnp.min(ids, axis=-1) == largest


def row(place):
    return place >> 2 * BITS


def q_block(place):
    return place >> BITS & MAX_BLOCKS - 1


def kv_block(place):
    return place & MAX_BLOCKS - 1


def specs(block_q: int, block_kv: int, K: int):
    """Block specs for the grid (heads, steps): [B, A, N, K] by query and by key, [B, A, 1, N] by query."""

    def of_q(h, n, places, *_):
        return row(places[n]), h, q_block(places[n]), 0

    def of_k(h, n, places, *_):
        return row(places[n]), h, kv_block(places[n]), 0

    def in_row(h, n, places, *_):
        return row(places[n]), h, 0, q_block(places[n])

    return (
        pl.BlockSpec((None, None, block_q, K), of_q),
        pl.BlockSpec((None, None, block_kv, K), of_k),
        pl.BlockSpec((None, None, 1, block_q), in_row),
    )


def segment_specs(block_q: int, block_kv: int):
    """Block specs of the segments of queries and of keys, [B, 1, N] and [B, 1, M]."""
    return (
        pl.BlockSpec((None, 1, block_q), lambda h, n, places, *_: (row(places[n]), 0, q_block(places[n]))),
        pl.BlockSpec((None, 1, block_kv), lambda h, n, places, *_: (row(places[n]), 0, kv_block(places[n]))),
    )


def cost(q, k, products: int):
    """The work of all pairs, by which XLA schedules around a kernel: an upper bound for packed sequences."""
    B, A, N, K = q.shape
    logits = B * A * N * k.shape[2]
    read = (products - 1) * 2 * q.size * q.dtype.itemsize
    return pl.CostEstimate(flops=2 * products * logits * K, transcendentals=logits, bytes_accessed=read)


def seen(q_ids, kv_ids):
    """Which keys each query of a block sees, bool [keys, queries]; q_ids, kv_ids: references to [1, N], [1, M]."""
    column = jnp.broadcast_to(kv_ids[...], (SUBLANES, kv_ids.shape[1])).T[:, :1]
    return column == q_ids[...]
