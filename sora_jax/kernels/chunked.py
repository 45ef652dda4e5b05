"""The kernels of attention: a block of queries by a block of keys, forward and backward, no row of logits held.

`ring.attend` makes whole attention of one block, and ring attention of several: a kernel gives the log-sum-exp of
its logits, and takes that of all keys for its gradient.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes, SegmentIds
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as pallas
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from sora_jax.core.mesh import platform

CHUNK = 256  # queries at a time where there are many; of fewer, as many as give LOGITS
MAX_CHUNK = 1152  # but no more: beyond, it is no faster
STEP = 64  # where there are several chunks, each is a multiple of it
LOGITS = 2**22  # of a head, as many as a chunk of more queries may have
MASK_VALUE = -0.7 * float(np.finfo(np.float32).max)  # the logit of a key of another segment
SAFE_EXP_LOGIT = (
    40.0  # logits up to here, either way, are exponentiated as they are: no maximum is taken off first
)
LANES = 128  # of a TPU's vector registers: widths and blocks are multiples
BLOCK = 512


class Kernel(NamedTuple):
    """Softmax attention within segments; heads come first, q is scaled already.

    forward: (q [B, A, N, K], k, v [B, A, M, K], q_segment_ids [B, N], kv_segment_ids [B, M]) -> (y [B, A, N,
      K] in q's
      type, log of the softmax's sum [B, A, N] float32). Where a query sees no key, y is any finite number and the
      log is about HIDDEN.
    backward: (the same arguments, y, log_total, dy) -> (dq, dk, dv). y and log_total may be of more keys than k.
    block: number of queries or keys -> what it must be a multiple of.
    width: what the width of a head must be a multiple of.
    """

    forward: Callable
    backward: Callable
    block: Callable
    width: int


def _chunked_forward(q, k, v, q_segment_ids, kv_segment_ids):
    return _by_heads(_head_forward, (q_segment_ids, kv_segment_ids), q, k, v)


def _chunked_backward(q, k, v, q_segment_ids, kv_segment_ids, y, log_total, dy):
    return _by_heads(_head_backward, (q_segment_ids, kv_segment_ids), q, k, v, y, log_total, dy)


def _by_heads(function, segment_ids, *arrays):
    """function(segments, *arrays) of each head of each row; a CPU takes one or two at a time.

    Args:
      segments: arrays [B, N]; [N] for the function.
      arrays: [B, A, ...], as the results; without [B, A] for the function, as its results.
    """
    # Known before the queries are, the mask of all chunks would be made ahead and kept: N x M for each head.
    hold = jax.lax.optimization_barrier
    if platform() != "cpu":
        segment_ids, arrays = hold((segment_ids, arrays))
        heads = jax.vmap(function, in_axes=(None, *(0 for _ in arrays)))
        return jax.vmap(heads)(segment_ids, *arrays)
    B, A = arrays[0].shape[:2]
    # Heads within tokens, as the layers before made them, and as those after take them: to cut a head out or put
    # it in is cheap; to transpose all would become a part of what they are computed by, and make it several times
    # as slow.
    segment_ids, arrays = hold((segment_ids, [_as_bits(jnp.swapaxes(x, 1, 2)) for x in arrays]))

    def attend(b, a):
        results = function([x[b] for x in segment_ids], *(_from_bits(x[b, :, a]) for x in arrays))
        return jax.tree.map(_as_bits, results)

    one = jax.eval_shape(attend, 0, 0)

    def loop(first, heads):
        def put(number, results):
            b, a = jnp.divmod(number, heads)
            return jax.tree.map(lambda whole, one: whole.at[b, :, a].set(one), results, attend(b, first + a))

        empty = jax.tree.map(lambda x: jnp.zeros((B, len(x), heads, *x.shape[1:]), x.dtype), one)
        return jax.lax.fori_loop(0, B * heads, put, empty)

    loops = _loops(A, arrays[0].shape[1] * arrays[1].shape[1])
    results = [loop(n * A // loops, A // loops) for n in range(loops)]
    return jax.tree.map(lambda *parts: _from_bits(jnp.swapaxes(jnp.concatenate(parts, 2), 1, 2)), *results)


def _loops(heads, logits):
    """Over how many loops the heads are split. XLA runs two side by side, each mostly on a core of its own.

    Where several devices share the cores they fill them anyway, and small loops only take longer to compile.
    """
    return 2 if logits >= LOGITS and heads % 2 == 0 and jax.sharding.get_abstract_mesh().size <= 1 else 1


def _as_bits(x):
    """bfloat16 as uint16, other types as they are: XLA's CPU backend widens bfloat16 to float32 to cut it."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _from_bits(x):
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def _head_forward(segment_ids, q, k, v):
    """q [N, K], k, v [M, K] -> y [N, K] in q's type, log_total [N] float32."""
    q_segment_ids, kv_segment_ids = segment_ids
    longest_key = _longest(k)  # |q k| <= |q| |k|

    def attend(_, chunk):
        q, segment_ids = map(_from_bits, chunk)
        logits = _logits(q, k)

        def seen():  # each time anew: a mask that is kept would be written to memory
            return jnp.where(segment_ids[:, None] == kv_segment_ids, logits, MASK_VALUE)

        most = jax.lax.cond(
            _longest(q) * longest_key < SAFE_EXP_LOGIT,
            lambda: jnp.zeros_like(logits[:, :1]),
            lambda: jnp.max(seen(), axis=-1, keepdims=True),
        )
        weights = _rounded(jnp.exp(seen() - most), v.dtype)
        total = jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.float32)
        sees, total = total > 0, jnp.where(total > 0, total, 1)
        log_total = jnp.where(sees, most + jnp.log(total), MASK_VALUE)
        y = _rounded(_product(weights, v) / total, q.dtype)
        return None, (_as_bits(y), log_total[:, 0])

    _, (y, log_total) = jax.lax.scan(attend, None, _chunks(k, q, q_segment_ids))
    return _from_bits(_join(y)), _join(log_total)


def _head_backward(segment_ids, q, k, v, y, log_total, dy):
    """-> dq [N, K], dk, dv [M, K], float32; dy [N, K]."""
    q_segment_ids, kv_segment_ids = segment_ids
    # Of each query: what the softmax takes off every weight's gradient.
    mean = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)

    def attend(carry, chunk):
        dk, dv = carry
        q, segment_ids, log_total, dy, mean = map(_from_bits, chunk)
        logits = jnp.where(segment_ids[:, None] == kv_segment_ids, _logits(q, k), MASK_VALUE)
        weights = _rounded(jnp.exp(logits - log_total[:, None]), dy.dtype)
        dlogits = _rounded(weights * (_logits(dy, v) - mean[:, None]), q.dtype)
        dv += _sum_over_queries(dy, weights)
        dk += _sum_over_queries(q, dlogits)
        return (dk, dv), _product(dlogits, k)

    zeros = tuple(jnp.zeros_like(x.T, jnp.float32) for x in (k, v))
    (dk, dv), dq = jax.lax.scan(attend, zeros, _chunks(k, q, q_segment_ids, log_total, dy, mean))
    return _join(dq), dk.T, dv.T


def _logits(q, k):
    return jnp.einsum("nk,mk->nm", q, k, preferred_element_type=jnp.float32)


def _product(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _sum_over_queries(x, weights):
    """[N, K], [N, M] -> [K, M]: a CPU wants what is summed over last in memory, here of the small factor."""

    def written(x):
        # Or the compiler would write a product that is transposed later with its factors the other way round:
        # slower, and of bfloat16 its runtime has none.
        return with_layout_constraint(x, Layout((0, 1))) if platform() == "cpu" else x

    return written(jnp.matmul(written(x.T), weights, preferred_element_type=jnp.float32))


def _rounded(x, dtype):
    """x [...] float32 in `dtype`. XLA's CPU backend takes half as long to round to bfloat16 as to exponentiate.

    So there it is done by bits: a half goes up in magnitude, not to the even number.
    """
    if dtype != jnp.bfloat16 or platform() != "cpu":
        return x.astype(dtype)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + 0x8000
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def _longest(x):
    """The length of the longest of all vectors of x [N, K]."""
    return jnp.sqrt(jnp.max(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)))


def _chunk(N, M):
    """The queries of a chunk: a block, or the largest multiple that divides them and gives few logits."""
    least = _chunked_block(N)
    return max(n for n in range(least, N + 1, least) if N % n == 0 and (n == least or n * M <= LOGITS))


def _chunked_block(length):
    """Chunks as even as whole STEPs are: 1,200 are twice 640, not 768."""
    chunks = -(-length // min(max(LOGITS // length, CHUNK), MAX_CHUNK))
    return -(-length // (chunks * STEP)) * STEP if chunks > 1 else length


def _chunks(k, *arrays):
    """Of queries, for `scan`: [N, ...] -> [N / chunk, chunk, ...], as bits."""
    chunk = _chunk(len(arrays[0]), len(k))
    return [_as_bits(x.reshape(-1, chunk, *x.shape[1:])) for x in arrays]


def _join(x):
    """[N / chunk, chunk, ...] -> [N, ...]."""
    return x.reshape(-1, *x.shape[2:])


# For any machine, a chunk of queries at a time; the backward pass computes the logits anew.
# Source: Rabe & Staats 2021 (arXiv 2112.05682); the gradient of Dao et al. 2022 (arXiv 2205.14135), appendix B.
chunked = Kernel(_chunked_forward, _chunked_backward, block=_chunked_block, width=1)


def splash(*, interpret=False) -> Kernel:
    """JAX's Pallas kernel for TPU.

    interpret: run the kernel's program step by step, on any machine.
    """
    # Segments say what is hidden; no block of logits is hidden for its place.
    mask = MaskInfo(data_next=None, mask_next=None, block_mask=None, partial_mask_blocks=None, q_sequence=None)

    def blocks(q, k):
        q, kv = _splash_block(q.shape[2]), _splash_block(k.shape[2])
        return BlockSizes(
            block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
        )  # fmt: skip

    options = {
        "mask_value": MASK_VALUE,
        "is_mqa": False,
        "residual_checkpoint_name": None,
        "save_residuals": True,
        "mask_function": None,
        "attn_logits_soft_cap": None,
        "interpret": interpret,
    }

    # JAX drops a jitted function whose results are not used, as under jax.checkpoint where they are kept; a Pallas
    # call alone it would run again.
    @jax.jit
    def forward(q, k, v, q_segment_ids, kv_segment_ids):
        run = functools.partial(pallas._splash_attention_forward, block_sizes=blocks(q, k), sinks=None, **options)
        y, (log_total,) = jax.vmap(lambda *arrays: run(mask, *arrays))(
            q, k, v, SegmentIds(q_segment_ids, kv_segment_ids)
        )
        return y, log_total

    def backward(q, k, v, q_segment_ids, kv_segment_ids, y, log_total, dy):
        run = functools.partial(pallas._splash_attention_bwd, block_sizes=blocks(q, k), **options)

        def row(q, k, v, segment_ids, y, log_total, dy):
            *_, dq, dk, dv, _, _ = run(res=(q, k, v, segment_ids, None, y, log_total, mask, mask), do=dy)
            return dq, dk, dv

        return jax.vmap(row)(q, k, v, SegmentIds(q_segment_ids, kv_segment_ids), y, log_total, dy)

    return Kernel(forward, backward, block=_splash_block, width=LANES)


def _splash_block(length):
    return min(BLOCK, -(-length // LANES) * LANES)
