"""Attention for any backend, a chunk of queries at a time; the backward pass computes the logits again.

Segments are runs of tokens: a chunk meets the keys from the first to the last of its own segments, and no others.

Source: Rabe & Staats 2021 (arXiv 2112.05682); the gradient of Dao et al. 2022 (arXiv 2205.14135), appendix B.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sora_jax.kernels.ops import as_bits, from_bits, map_heads, round_to, sum_over_queries
from sora_jax.kernels.ring import MASK_VALUE, PAD_KEY, PAD_QUERY, BlockKernel

MAX_CHUNK = 640  # queries of a chunk
CHUNK_MULTIPLE = 64  # of queries, where there are several chunks
KEY_BLOCK = 256  # keys that a chunk meets at once
SAFE_EXP_LOGIT = 40.0  # logits up to +- this are exponentiated without subtracting their maximum


class Chunk(NamedTuple):
    """Some queries of one head, and their keys.

    start: the first of n queries. mine: those of the n that belong to this chunk, [n] bool.
    segment_ids: of the chunk's queries, [n]; PAD_QUERY for the others.
    kv_segment_ids: of all keys, [M].
    first_key, end_key: the keys of the chunk's segments are among first_key, ..., end_key - 1.
    """

    start: jax.Array
    mine: jax.Array
    segment_ids: jax.Array
    kv_segment_ids: jax.Array
    first_key: jax.Array
    end_key: jax.Array

    def read(self, x):
        """The n rows of x [N, ...]."""
        return _window(x, self.start, len(self.mine))

    def write(self, whole, x):
        """`whole` [N, ...] with the chunk's rows of x [n, ...]."""
        mine = jnp.reshape(self.mine, (-1,) + (1,) * (x.ndim - 1))
        x = jnp.where(mine, as_bits(x), self.read(whole))
        return jax.lax.dynamic_update_slice_in_dim(whole, x, self.start, axis=0)


class Plan(NamedTuple):
    """The chunks of a sequence: the same for all its heads.

    begin, end: of each chunk's queries, [C]. first_key, end_key: of its keys, [C]. count: of chunks to visit.
    """

    begin: jax.Array
    end: jax.Array
    first_key: jax.Array
    end_key: jax.Array
    count: jax.Array


def _forward(q, k, v, q_segment_ids, kv_segment_ids):
    plans = jax.vmap(_plan_chunks)(q_segment_ids, kv_segment_ids)
    return map_heads(_head_forward, (q_segment_ids, kv_segment_ids, *plans), q, k, v)


def _backward(q, k, v, q_segment_ids, kv_segment_ids, y, log_total, dy):
    plans = jax.vmap(_plan_chunks)(q_segment_ids, kv_segment_ids)
    return map_heads(_head_backward, (q_segment_ids, kv_segment_ids, *plans), q, k, v, y, log_total, dy)


def _head_forward(segment_ids, q, k, v):
    """q [N, K], k, v [M, K] -> y [N, K] in q's type, log_total [N] float32."""
    q_bits, k_bits, v_bits = map(as_bits, (q, k, v))
    max_key_norm = _max_norm(k)  # |q k| <= |q| |k|

    def attend(chunk, results):
        q = from_bits(chunk.read(q_bits))

        def logits_of(start, seen):  # a function, so that XLA fuses the mask into each use and never stores it
            return jnp.where(seen, _logits(q, from_bits(_window(k_bits, start, seen.shape[1]))), MASK_VALUE)

        def maximum(start, seen, so_far):
            return jnp.maximum(so_far, jnp.max(logits_of(start, seen), axis=-1, keepdims=True))

        def add(start, seen, so_far):
            y, total = so_far
            weights = round_to(jnp.exp(logits_of(start, seen) - largest), v.dtype)
            total += jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.float32)
            return y + _matmul(weights, from_bits(_window(v_bits, start, seen.shape[1]))), total

        over_keys = functools.partial(_over_keys, chunk)
        zeros = jnp.zeros((len(q), 1))
        largest = jax.lax.cond(
            _max_norm(q) * max_key_norm < SAFE_EXP_LOGIT,
            lambda: zeros,
            lambda: over_keys(maximum, zeros + MASK_VALUE),
        )
        y, total = over_keys(add, (jnp.zeros(q.shape), zeros))
        sees, total = total > 0, jnp.where(total > 0, total, 1)
        log_total = jnp.where(sees, largest + jnp.log(total), MASK_VALUE)
        return jax.tree.map(chunk.write, results, (round_to(y / total, q.dtype), log_total[:, 0]))

    empty = jnp.zeros_like(q_bits), jnp.full(len(q), MASK_VALUE)
    y, log_total = _over_chunks(attend, segment_ids, empty)
    return from_bits(y), log_total


def _head_backward(segment_ids, q, k, v, y, log_total, dy):
    """-> dq [N, K], dk, dv [M, K], float32; dy [N, K]."""
    q_bits, k_bits, v_bits, dy_bits = map(as_bits, (q, k, v, dy))
    # The term that the softmax's normalisation subtracts from the gradient of each of a query's weights.
    mean = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)

    def attend(chunk, results):
        q, dy = (from_bits(chunk.read(x)) for x in (q_bits, dy_bits))
        log_of, mean_of = (chunk.read(x)[:, None] for x in (log_total, mean))

        def add(start, seen, so_far):
            dq, dk, dv = so_far
            m = seen.shape[1]
            k, v = (from_bits(_window(x, start, m)) for x in (k_bits, v_bits))
            logits = jnp.where(seen, _logits(q, k), MASK_VALUE)
            weights = round_to(jnp.exp(logits - log_of), dy.dtype)
            dlogits = round_to(weights * (_logits(dy, v) - mean_of), q.dtype)

            def with_block(whole, x, weights):
                block = _window(whole, start, m) + sum_over_queries(x, weights).T
                return jax.lax.dynamic_update_slice_in_dim(whole, block, start, axis=0)

            return dq + _matmul(dlogits, k), with_block(dk, q, dlogits), with_block(dv, dy, weights)

        dq, *dkv = results
        of_chunk, *dkv = _over_keys(chunk, add, (jnp.zeros(q.shape), *dkv))
        return chunk.write(dq, of_chunk), *dkv

    zeros = tuple(jnp.zeros_like(x, jnp.float32) for x in (q, k, v))
    return _over_chunks(attend, segment_ids, zeros)


def _plan_chunks(q_segment_ids, kv_segment_ids):
    """The chunks of a sequence, from its segments [N] and [M].

    A chunk ends with a segment or lies within one: one that goes a little into the next would need all its keys.
    """
    N, M = len(q_segment_ids), len(kv_segment_ids)
    n = chunk_size(N)
    is_last = jnp.append(q_segment_ids[1:] != q_segment_ids[:-1], True)

    def cut(begin, _):
        places = jnp.minimum(begin, N - n) + jnp.arange(n)
        ends = (places >= begin) & _window(is_last, places[0], n)
        # No end among them: the segment is longer, and all n are of it.
        end = jnp.where(jnp.any(ends), jnp.max(jnp.where(ends, places + 1, 0)), begin + n)
        end = jnp.minimum(end, N)
        ids = _window(q_segment_ids, places[0], n)
        real = (places >= begin) & (places < end) & (ids > 0)
        lowest = jnp.min(jnp.where(real, ids, jnp.iinfo(ids.dtype).max))
        return end, (begin, end, lowest, jnp.max(jnp.where(real, ids, 0)))

    # Two chunks that follow each other have more than n queries.
    count = 2 * -(-N // n) + 1
    _, (begin, end, lowest, highest) = jax.lax.scan(cut, jnp.int32(0), length=count)
    meets = (kv_segment_ids >= lowest[:, None]) & (kv_segment_ids <= highest[:, None])
    first_key = jnp.min(jnp.where(meets, jnp.arange(M), M), axis=1)
    end_key = jnp.max(jnp.where(meets, jnp.arange(M) + 1, 0), axis=1)
    # The last ones that meet no key need no visit.
    visits = jnp.max(jnp.where(end_key > 0, jnp.arange(count) + 1, 0))
    return Plan(begin, end, first_key, end_key, visits)


def _over_chunks(attend: Callable, segment_ids, results):
    """results = attend(chunk, results) for each chunk of the queries in turn."""
    q_segment_ids, kv_segment_ids, *plan = segment_ids
    plan = Plan(*plan)
    N = len(q_segment_ids)
    n = chunk_size(N)

    def step(i, results):
        begin, end, *keys = (x[i] for x in plan[:4])
        start = jnp.minimum(begin, N - n)  # the last chunk may begin among queries that are done
        places = start + jnp.arange(n)
        mine = (places >= begin) & (places < end)
        ids = jnp.where(mine, _window(q_segment_ids, start, n), PAD_QUERY)
        return attend(Chunk(start, mine, ids, kv_segment_ids, *keys), results)

    return jax.lax.fori_loop(0, plan.count, step, results)


def _over_keys(chunk: Chunk, visit: Callable, so_far):
    """so_far = visit(start, seen, so_far) for each block of the chunk's keys in turn.

    start: the first of m keys. seen: the pairs of a query and a key of its segment, [n, m] bool.
    """
    M = len(chunk.kv_segment_ids)
    m = min(KEY_BLOCK, M)

    def step(block, so_far):
        begin = chunk.first_key + block * m
        start = jnp.minimum(begin, M - m)  # the last block may begin among keys that were met before
        ids = jnp.where(start + jnp.arange(m) >= begin, _window(chunk.kv_segment_ids, start, m), PAD_KEY)
        return visit(start, chunk.segment_ids[:, None] == ids, so_far)

    return jax.lax.fori_loop(0, -(-(chunk.end_key - chunk.first_key) // m), step, so_far)


def _window(x, start, size):
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def _logits(q, k):
    return jnp.einsum("nk,mk->nm", q, k, preferred_element_type=jnp.float32)


def _matmul(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _max_norm(x):
    """The largest Euclidean norm of the vectors of x [N, K]."""
    return jnp.sqrt(jnp.max(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)))


def chunk_size(N: int) -> int:
    """Queries of a chunk, so that N is cut evenly: 1,200 into two of 640, not into 640 and 560."""
    chunks = -(-N // MAX_CHUNK)
    return min(N, -(-N // (chunks * CHUNK_MULTIPLE)) * CHUNK_MULTIPLE)


chunked = BlockKernel(_forward, _backward, block=lambda length: 1, width=1)
