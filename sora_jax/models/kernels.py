"""Attention that never holds the logits of a whole row: in chunks for any machine, and splash attention on TPU.

Each takes whole sequences and few heads, as they lie on one chip, and has a gradient of its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    FullMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha_single_device,
)

CHUNK = 256  # queries at a time
HIDDEN = -0.7 * float(np.finfo(np.float32).max)  # the logit of a key of another segment
LANES = 128  # of a TPU's vector registers: widths and blocks are multiples
BLOCK = 512
NOBODY = -1  # the segment of what fills up a block; no query is in it and no key


def chunked(q, k, v, q_segments, kv_segments, scale):
    """Softmax attention within segments, a chunk of queries at a time; the backward pass computes logits anew.

    Args:
      q: [B, N, A, K]. k, v: [B, M, A, K].
      q_segments, kv_segments: [B, N], [B, M] int32.
    Returns: [B, N, A, K] in q's type; softmax in float32.
    Source: Rabe & Staats 2021 (arXiv 2112.05682); the gradient of Dao et al. 2022 (arXiv 2205.14135), appendix B.
    """
    N = q.shape[1]
    size = min(CHUNK, N)
    q, q_segments = (_fill(x, size, value) for x, value in ((q, 0), (q_segments, NOBODY)))
    return _chunked(q, k, v, q_segments, kv_segments, scale, size)[:, :N]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _chunked(q, k, v, q_segments, kv_segments, scale, size):
    return _chunked_forward(q, k, v, q_segments, kv_segments, scale, size)[0]


def _chunked_forward(q, k, v, q_segments, kv_segments, scale, size):
    def attend(chunk):
        q, segments = chunk
        logits = _logits(q, k, segments, kv_segments, scale)
        most = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - most)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        y = jnp.einsum("banm,bmak->bnak", (weights / total).astype(v.dtype), v)
        return y, (most + jnp.log(total))[..., 0]

    y, log_total = jax.lax.map(attend, (_split(q, size), _split(q_segments, size)))
    y = _join(y)
    return y, (q, k, v, q_segments, kv_segments, y, log_total)


def _chunked_backward(scale, size, saved, dy):
    q, k, v, q_segments, kv_segments, y, log_total = saved
    # Of each query: what the softmax takes off every weight's gradient.
    mean = jnp.einsum("bnak,bnak->ban", dy.astype(jnp.float32), y.astype(jnp.float32))

    def attend(carry, chunk):
        dk, dv = carry
        q, segments, log_total, dy, mean = chunk
        weights = jnp.exp(_logits(q, k, segments, kv_segments, scale) - log_total[..., None])
        dweights = jnp.einsum("bnak,bmak->banm", dy, v, preferred_element_type=jnp.float32)
        dlogits = (weights * (dweights - mean[..., None]) * scale).astype(q.dtype)
        dv += jnp.einsum("banm,bnak->bmak", weights.astype(dy.dtype), dy, preferred_element_type=jnp.float32)
        dk += jnp.einsum("banm,bnak->bmak", dlogits, q, preferred_element_type=jnp.float32)
        return (dk, dv), jnp.einsum("banm,bmak->bnak", dlogits, k)

    zeros = tuple(jnp.zeros_like(x, jnp.float32) for x in (k, v))
    means = jnp.moveaxis(mean.reshape(*mean.shape[:2], -1, size), 2, 0)
    chunks = (_split(q, size), _split(q_segments, size), log_total, _split(dy, size), means)
    (dk, dv), dq = jax.lax.scan(attend, zeros, chunks)
    return _join(dq), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _logits(q, k, q_segments, kv_segments, scale):
    logits = scale * jnp.einsum("bnak,bmak->banm", q, k, preferred_element_type=jnp.float32)
    return jnp.where((q_segments[:, :, None] == kv_segments[:, None, :])[:, None], logits, HIDDEN)


def _fill(x, size, value):
    """[B, N, ...] with N filled up to a multiple of size."""
    missing = -x.shape[1] % size
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2), constant_values=value)


def _split(x, size):
    """[B, N, ...] -> [N / size, B, size, ...]."""
    return jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)


def _join(x):
    """Inverts `_split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(len(x), -1, *x.shape[3:])


def splash(q, k, v, q_segments, kv_segments, scale, *, interpret=False):
    """Softmax attention within segments by JAX's Pallas kernel for TPU, forward and backward.

    Arguments as for `chunked`; lengths and head widths that are no multiple of its blocks are filled up.
    interpret: run the kernel's program step by step, on any machine.
    """
    _, N, A, K = q.shape
    M = k.shape[1]
    q_block, kv_block = (min(BLOCK, -(-length // LANES) * LANES) for length in (N, M))
    q, k, v = (jnp.pad(x, [(0, 0)] * 3 + [(0, -K % LANES)]) for x in (q * jnp.asarray(scale, q.dtype), k, v))
    q, q_segments = (_fill(x, q_block, value) for x, value in ((q, 0), (q_segments, NOBODY)))
    k, v, kv_segments = (_fill(x, kv_block, value) for x, value in ((k, 0), (v, 0), (kv_segments, NOBODY - 1)))
    blocks = BlockSizes(
        block_q=q_block,
        block_kv=kv_block,
        block_q_dkv=q_block,
        block_kv_dkv=kv_block,
        block_q_dq=q_block,
        block_kv_dq=kv_block,
    )
    mask = MultiHeadMask([FullMask((q.shape[1], k.shape[1]))] * A)
    kernel = make_splash_mha_single_device(mask, block_sizes=blocks, interpret=interpret)
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    y = jax.vmap(kernel)(*heads_first, SegmentIds(q_segments, kv_segments))
    return jnp.swapaxes(y, 1, 2)[:, :N, :, :K]
