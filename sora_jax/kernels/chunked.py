"""Attention for any backend, a chunk of queries at a time; the backward pass computes the logits again.

Source: Rabe & Staats 2021 (arXiv 2112.05682); the gradient of Dao et al. 2022 (arXiv 2205.14135), appendix B.
"""

import jax
import jax.numpy as jnp

from sora_jax.kernels.ops import as_bits, from_bits, map_heads, round_to, sum_over_queries
from sora_jax.kernels.ring import MASK_VALUE, BlockKernel

MIN_CHUNK, MAX_CHUNK = 256, 1152  # queries of a chunk; between them, as many as CHUNK_LOGITS allows
CHUNK_LOGITS = 2**22  # of one head
CHUNK_MULTIPLE = 64  # of queries, where there are several chunks
SAFE_EXP_LOGIT = 40.0  # logits up to +- this are exponentiated without subtracting their maximum


def _forward(q, k, v, q_segment_ids, kv_segment_ids):
    return map_heads(_head_forward, (q_segment_ids, kv_segment_ids), q, k, v)


def _backward(q, k, v, q_segment_ids, kv_segment_ids, y, log_total, dy):
    return map_heads(_head_backward, (q_segment_ids, kv_segment_ids), q, k, v, y, log_total, dy)


def _head_forward(segment_ids, q, k, v):
    """q [N, K], k, v [M, K] -> y [N, K] in q's type, log_total [N] float32."""
    q_segment_ids, kv_segment_ids = segment_ids
    max_key_norm = _max_norm(k)  # |q k| <= |q| |k|

    def attend(_, chunk):
        q, segment_ids = map(from_bits, chunk)
        logits = _logits(q, k)

        def masked():  # a function, so that XLA fuses it into each use and never stores the mask
            return jnp.where(segment_ids[:, None] == kv_segment_ids, logits, MASK_VALUE)

        largest = jax.lax.cond(
            _max_norm(q) * max_key_norm < SAFE_EXP_LOGIT,
            lambda: jnp.zeros_like(logits[:, :1]),
            lambda: jnp.max(masked(), axis=-1, keepdims=True),
        )
        weights = round_to(jnp.exp(masked() - largest), v.dtype)
        total = jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.float32)
        sees, total = total > 0, jnp.where(total > 0, total, 1)
        log_total = jnp.where(sees, largest + jnp.log(total), MASK_VALUE)
        y = round_to(_matmul(weights, v) / total, q.dtype)
        return None, (as_bits(y), log_total[:, 0])

    _, (y, log_total) = jax.lax.scan(attend, None, _chunks(k, q, q_segment_ids))
    return from_bits(_join(y)), _join(log_total)


def _head_backward(segment_ids, q, k, v, y, log_total, dy):
    """-> dq [N, K], dk, dv [M, K], float32; dy [N, K]."""
    q_segment_ids, kv_segment_ids = segment_ids
    # The term that the softmax's normalisation subtracts from the gradient of each of a query's weights.
    mean = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)

    def attend(carry, chunk):
        dk, dv = carry
        q, segment_ids, log_total, dy, mean = map(from_bits, chunk)
        logits = jnp.where(segment_ids[:, None] == kv_segment_ids, _logits(q, k), MASK_VALUE)
        weights = round_to(jnp.exp(logits - log_total[:, None]), dy.dtype)
        dlogits = round_to(weights * (_logits(dy, v) - mean[:, None]), q.dtype)
        dv += sum_over_queries(dy, weights)
        dk += sum_over_queries(q, dlogits)
        return (dk, dv), _matmul(dlogits, k)

    zeros = tuple(jnp.zeros_like(x.T, jnp.float32) for x in (k, v))
    (dk, dv), dq = jax.lax.scan(attend, zeros, _chunks(k, q, q_segment_ids, log_total, dy, mean))
    return _join(dq), dk.T, dv.T


def _logits(q, k):
    return jnp.einsum("nk,mk->nm", q, k, preferred_element_type=jnp.float32)


def _matmul(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _max_norm(x):
    """The largest Euclidean norm of the vectors of x [N, K]."""
    return jnp.sqrt(jnp.max(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)))


def chunk_size(N: int, M: int) -> int:
    """Queries of a chunk: the largest multiple of the block that divides N within CHUNK_LOGITS, or the block."""
    block = block_size(N)
    return max(n for n in range(block, N + 1, block) if N % n == 0 and (n == block or n * M <= CHUNK_LOGITS))


def block_size(length: int) -> int:
    """What `length` is padded to a multiple of, so that chunks are even: 1,200 become twice 640, not 768."""
    chunks = -(-length // min(max(CHUNK_LOGITS // length, MIN_CHUNK), MAX_CHUNK))
    return -(-length // (chunks * CHUNK_MULTIPLE)) * CHUNK_MULTIPLE if chunks > 1 else length


def _chunks(k, *arrays):
    """Arrays of queries [N, ...] as `scan` takes them, [N / chunk, chunk, ...]."""
    chunk = chunk_size(len(arrays[0]), len(k))
    return [as_bits(x.reshape(-1, chunk, *x.shape[1:])) for x in arrays]


def _join(x):
    """[N / chunk, chunk, ...] -> [N, ...]."""
    return x.reshape(-1, *x.shape[2:])


chunked = BlockKernel(_forward, _backward, block=block_size, width=1)
