"""Attention made of a kernel's blocks: of one chip's queries to its own keys, or to those of a ring of chips.

Source: Liu et al. 2023 (arXiv 2310.01889); blocks are merged as in arXiv 2205.14135, algorithm 1.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from sora_jax.core.mesh import over_gloo

RESIDUALS = "attention"  # the name under which jax.checkpoint's policies save what the backward pass needs
MASK_VALUE = -0.7 * float(np.finfo(np.float32).max)  # the logit of a key of another segment
PAD_QUERY, PAD_KEY = -1, -2  # the segments of padding, which no key and no query has


class BlockKernel(NamedTuple):
    """Softmax attention within segments of one block of queries and keys; it never stores a row of logits.

    forward: (q [B, A, N, K], scaled; k, v [B, A, M, K]; q_segment_ids [B, N]; kv_segment_ids [B, M]) ->
      (y [B, A, N, K] in q's type, log of the softmax's sum [B, A, N] float32). For a query that sees no key, y is
      any finite number and the log is about MASK_VALUE.
    backward: (the same arguments, y, log_total, dy) -> (dq, dk, dv). y and log_total may cover more keys than k.
    block: number of queries or keys -> the block size that it is padded to a multiple of.
    width: the number that the width of a head is padded to a multiple of.
    scale: the queries are multiplied by it, beside the logits' K^-1/2.
    """

    forward: Callable
    backward: Callable
    block: Callable
    width: int
    scale: float = 1.0


def ring_attention(kernel: BlockKernel, q, k, v, q_segment_ids, kv_segment_ids, *, ring=1):
    """Softmax attention within segments, inside a shard_map; lengths and widths may be any.

    Args:
      kernel: computes the blocks.
      q: [B, N, A, K]. k, v: [B, M, A, K].
      q_segment_ids, kv_segment_ids: [B, N], [B, M] int32; 0 is padding.
      ring: size of the mesh axis `ring` over which the keys are split; 1: all keys are on this chip.
    Returns: [B, N, A, K] in q's type; softmax in float32. Padding and a query that sees no key get 0.
    """
    N, K = q.shape[1], q.shape[3]
    q_block, kv_block = kernel.block(N), kernel.block(k.shape[1])
    q = _pad((kernel.scale * K**-0.5 * q.astype(jnp.float32)).astype(q.dtype), q_block, kernel.width)
    k, v = (_pad(x, kv_block, kernel.width) for x in (k, v))
    segment_ids = []
    for x, block, padding in ((q_segment_ids, q_block, PAD_QUERY), (kv_segment_ids, kv_block, PAD_KEY)):
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)))
        segment_ids.append(jnp.where(x > 0, x, padding))
    return jnp.swapaxes(_attend(kernel, ring, q, k, v, *segment_ids), 1, 2)[:, :N, :, :K]


def _pad(x, block, width):
    """[B, N, A, K] -> [B, A, N, K], N and K padded to multiples."""
    *_, N, K = (x := jnp.swapaxes(x, 1, 2)).shape
    return jnp.pad(x, ((0, 0), (0, 0), (0, -N % block), (0, -K % width)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(kernel, ring, q, k, v, q_segment_ids, kv_segment_ids):
    return _forward(kernel, ring, q, k, v, q_segment_ids, kv_segment_ids)[0]


def _forward(kernel, ring, q, k, v, q_segment_ids, kv_segment_ids):
    def visit(so_far, keys):
        k, v, kv_segment_ids = keys

        def attend():
            y, log_total = kernel.forward(q, k, v, q_segment_ids, kv_segment_ids)
            return y.astype(jnp.float32), log_total

        if so_far is None:
            return attend()
        meet = _share_a_segment(q_segment_ids, kv_segment_ids)
        return jax.lax.cond(meet, lambda: _merge(so_far, attend()), lambda: so_far)

    y, log_total = _go_round(visit, (k, v, kv_segment_ids), ring)
    y = jnp.where(_sees_a_key(log_total), y, 0).astype(q.dtype)
    y, log_total = (checkpoint_name(x, RESIDUALS) for x in (y, log_total))
    return y, (q, k, v, q_segment_ids, kv_segment_ids, y, log_total)


def _backward(kernel, ring, saved, dy):
    q, k, v, q_segment_ids, kv_segment_ids, y, log_total = saved
    dy = jnp.where(_sees_a_key(log_total), dy, 0)

    def visit(so_far, keys):
        k, v, kv_segment_ids = keys

        def gradients():
            grads = kernel.backward(q, k, v, q_segment_ids, kv_segment_ids, y, log_total, dy)
            dq, dk, dv = (x.astype(jnp.float32) for x in grads)
            return dq, (dk, dv)

        if so_far is None:
            return gradients()
        dq, dkv = so_far
        # The gradients of these keys from the chips that had them before. They are added outside of the branch, so
        # that they travel while it runs.
        so_far = dq, _pass_on(dkv, ring)
        meet = _share_a_segment(q_segment_ids, kv_segment_ids)
        zeros = jax.tree.map(jnp.zeros_like, so_far)
        return jax.tree.map(jnp.add, so_far, jax.lax.cond(meet, gradients, lambda: zeros))

    dq, dkv = _go_round(visit, (k, v, kv_segment_ids), ring)
    dk, dv = _pass_on(dkv, ring) if ring > 1 else dkv  # one step more, to the chip that owns the keys
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_forward, _backward)


def _go_round(visit, keys, ring):
    """so_far = visit(so_far, keys), beginning with None, for the keys of every chip of the ring in turn.

    The next keys are sent before a visit begins, so that communication and computation overlap.
    """

    def hop(state, _):
        keys, so_far = state
        coming = _pass_on(keys, ring)
        return (coming, visit(so_far, keys)), None

    state = keys, None
    if ring > 1:
        state, _ = hop(state, None)
    if ring > 2:
        state, _ = jax.lax.scan(hop, state, length=ring - 2, unroll=over_gloo())
    keys, so_far = state
    return visit(so_far, keys)


def _share_a_segment(q_segment_ids, kv_segment_ids):
    """False: no key is of a query's segment. Exact if segments are numbered in order, as in packed sequences."""

    def ends(x):
        return jnp.min(jnp.where(x > 0, x, jnp.iinfo(x.dtype).max), axis=1), jnp.max(x, axis=1)

    (q_first, q_last), (kv_first, kv_last) = ends(q_segment_ids), ends(kv_segment_ids)
    return jnp.any((q_first <= kv_last) & (kv_first <= q_last))


def _pass_on(arrays, ring):
    """Send arrays to the next chip of the ring; returns those of the chip before."""
    steps = [(chip, (chip + 1) % ring) for chip in range(ring)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, "ring", steps), arrays)


def _merge(a, b):
    """(y, log_total) of two sets of keys -> those of their union."""
    log_total = jnp.logaddexp(a[1], b[1])
    return sum(jnp.exp(logs - log_total)[..., None] * y for y, logs in (a, b)), log_total


def _sees_a_key(log_total):
    """[B, A, N] -> bool [B, A, N, 1]."""
    return log_total[..., None] > MASK_VALUE / 2
