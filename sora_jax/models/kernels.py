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
from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes, SegmentIds
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as pallas
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

CHUNK = 256  # queries at a time where there are many; of fewer, as many as give LOGITS
MOST = 768  # but no more: beyond, it is no faster
STEP = 64  # where there are several chunks, each is a multiple of it
LOGITS = 2**21  # of a head, as many as a chunk of more queries may have
HIDDEN = -0.7 * float(np.finfo(np.float32).max)  # the logit of a key of another segment
LANES = 128  # of a TPU's vector registers: widths and blocks are multiples
BLOCK = 512


class Kernel(NamedTuple):
    """Softmax attention within segments; heads come first, q is scaled already.

    forward: (q [B, A, N, K], k, v [B, A, M, K], q_segments [B, N], kv_segments [B, M]) -> (y [B, A, N, K] in q's
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


def _chunked_forward(q, k, v, q_segments, kv_segments):
    return _by_heads(_heads_forward, (q_segments, kv_segments), q, k, v)


def _chunked_backward(q, k, v, q_segments, kv_segments, y, log_total, dy):
    return _by_heads(_heads_backward, (q_segments, kv_segments), q, k, v, y, log_total, dy)


def _by_heads(function, segments, *arrays):
    """function(segments, *arrays), where a CPU takes one head of one row at a time: its logits stay in the caches.

    Args:
      segments: arrays [B, N].
      arrays: [B, A, ...], as the function's results.
    """
    # Known before the queries are, the mask of all chunks would be made ahead and kept: N x M for each head.
    segments, arrays = jax.lax.optimization_barrier((segments, arrays))

    def apart(segments, arrays):
        B, A = arrays[0].shape[:2]
        segments = [jnp.repeat(x, A, axis=0)[:, None] for x in segments]
        heads = [x.reshape(B * A, 1, 1, *x.shape[2:]) for x in arrays]
        results = jax.lax.map(lambda head: function(head[0], *head[1]), (segments, heads))
        return jax.tree.map(lambda x: x.reshape(B, A, *x.shape[3:]), results)

    return jax.lax.platform_dependent(
        segments, arrays, cpu=apart, default=lambda segments, arrays: function(segments, *arrays)
    )


def _heads_forward(segments, q, k, v):
    q_segments, kv_segments = segments

    def attend(chunk):
        q, segments = chunk
        logits = _logits(q, k, segments, kv_segments)
        most = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - most)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        y = jnp.einsum("banm,bamk->bank", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (y / total).astype(q.dtype), (most + jnp.log(total))[..., 0]

    chunk = _chunk(q, k)
    y, log_total = jax.lax.map(attend, (_split(q, 2, chunk), _split(q_segments, 1, chunk)))
    return _join(y, 2), _join(log_total, 2)


def _heads_backward(segments, q, k, v, y, log_total, dy):
    q_segments, kv_segments = segments
    # Of each query: what the softmax takes off every weight's gradient.
    mean = jnp.einsum("bank,bank->ban", dy.astype(jnp.float32), y.astype(jnp.float32))

    def attend(carry, chunk):
        dk, dv = carry
        q, segments, log_total, dy, mean = chunk
        weights = jnp.exp(_logits(q, k, segments, kv_segments) - log_total[..., None])
        dweights = jnp.einsum("bank,bamk->banm", dy, v, preferred_element_type=jnp.float32)
        dlogits = (weights * (dweights - mean[..., None])).astype(q.dtype)
        dv += _sum_over_queries(dy, weights.astype(dy.dtype))
        dk += _sum_over_queries(q, dlogits)
        dq = jnp.einsum("banm,bamk->bank", dlogits, k, preferred_element_type=jnp.float32)
        return (dk, dv), dq.astype(q.dtype)

    zeros = tuple(jnp.zeros_like(jnp.swapaxes(x, 2, 3), jnp.float32) for x in (k, v))
    split = functools.partial(_split, chunk=_chunk(q, k))
    chunks = split(q, 2), split(q_segments, 1), split(log_total, 2), split(dy, 2), split(mean, 2)
    (dk, dv), dq = jax.lax.scan(attend, zeros, chunks)
    return _join(dq, 2), *(jnp.swapaxes(x, 2, 3) for x in (dk, dv))


def _sum_over_queries(x, weights):
    """[B, A, N, K], [B, A, N, M] -> [B, A, K, M] float32: so x, the small one, is what a CPU wants transposed."""
    x = jnp.swapaxes(x, 2, 3)
    return jnp.einsum("bakn,banm->bakm", x, weights, preferred_element_type=jnp.float32)


def _logits(q, k, q_segments, kv_segments):
    logits = jnp.einsum("bank,bamk->banm", q, k, preferred_element_type=jnp.float32)
    return jnp.where((q_segments[:, :, None] == kv_segments[:, None, :])[:, None], logits, HIDDEN)


def _chunk(q, k):
    """The queries of a chunk: a block, or the largest multiple that divides them and gives few logits."""
    N, M = q.shape[2], k.shape[2]
    least = _chunked_block(N)
    return max(n for n in range(least, N + 1, least) if N % n == 0 and (n == least or n * M <= LOGITS))


def _chunked_block(length):
    """Chunks as even as whole STEPs are: 1,200 are twice 640, not 768."""
    chunks = -(-length // min(max(LOGITS // length, CHUNK), MOST))
    return -(-length // (chunks * STEP)) * STEP if chunks > 1 else length


def _split(x, axis, chunk):
    """Chunks along `axis`, first: [..., N, ...] -> [N / chunk, ..., chunk, ...]."""
    x = x.reshape(*x.shape[:axis], -1, chunk, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _join(x, axis):
    """Inverts `_split`."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


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
        "mask_value": HIDDEN,
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
    def forward(q, k, v, q_segments, kv_segments):
        run = functools.partial(pallas._splash_attention_forward, block_sizes=blocks(q, k), sinks=None, **options)
        y, (log_total,) = jax.vmap(lambda *arrays: run(mask, *arrays))(
            q, k, v, SegmentIds(q_segments, kv_segments)
        )
        return y, log_total

    def backward(q, k, v, q_segments, kv_segments, y, log_total, dy):
        run = functools.partial(pallas._splash_attention_bwd, block_sizes=blocks(q, k), **options)

        def row(q, k, v, segments, y, log_total, dy):
            *_, dq, dk, dv, _, _ = run(res=(q, k, v, segments, None, y, log_total, mask, mask), do=dy)
            return dq, dk, dv

        return jax.vmap(row)(q, k, v, SegmentIds(q_segments, kv_segments), y, log_total, dy)

    return Kernel(forward, backward, block=_splash_block, width=LANES)


def _splash_block(length):
    return min(BLOCK, -(-length // LANES) * LANES)
