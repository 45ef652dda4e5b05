"""Attention of one chip's queries to its own keys, or to those of a ring of chips, made of a kernel's blocks.

Source: Liu et al. 2023 (arXiv 2310.01889); blocks are merged as in arXiv 2205.14135, algorithm 1.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sora_jax.core.mesh import over_gloo
from sora_jax.kernels.chunked import MASK_VALUE, Kernel

RESIDUALS = (
    "attention"  # the name, for jax.checkpoint's policies, of what the backward pass needs of the forward's
)
PAD_SEGMENT = -1  # the segment of what fills up a block; no query is in it and no key


def attend(kernel: Kernel, q, k, v, q_segment_ids, kv_segment_ids, *, ring=1):
    """Softmax attention within segments, of whole heads, inside a shard_map; lengths and widths may be any.

    Args:
      q: [B, N, A, K]. k, v: [B, M, A, K].
      q_segment_ids, kv_segment_ids: [B, N], [B, M] int32.
      ring: size of the mesh axis `ring`, over whose chips the keys lie; 1: all of them are here.
    Returns: [B, N, A, K] in q's type; softmax in float32. A query that sees no key gets 0.
    """
    N, K = q.shape[1], q.shape[3]
    q_block, kv_block = kernel.block(N), kernel.block(k.shape[1])
    q = _fill(q * jnp.asarray(K**-0.5, q.dtype), q_block, kernel.width)
    k, v = (_fill(x, kv_block, kernel.width) for x in (k, v))
    segment_ids = [
        jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)), constant_values=filler)
        for x, block, filler in (
            (q_segment_ids, q_block, PAD_SEGMENT),
            (kv_segment_ids, kv_block, PAD_SEGMENT - 1),
        )
    ]
    return jnp.swapaxes(_attend(kernel, ring, q, k, v, *segment_ids), 1, 2)[:, :N, :, :K]


def _fill(x, block, width):
    """[B, N, A, K] -> [B, A, N, K], N and K filled up to multiples."""
    *_, N, K = (x := jnp.swapaxes(x, 1, 2)).shape
    return jnp.pad(x, ((0, 0), (0, 0), (0, -N % block), (0, -K % width)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(kernel, ring, q, k, v, q_segment_ids, kv_segment_ids):
    return _attend_forward(kernel, ring, q, k, v, q_segment_ids, kv_segment_ids)[0]


def _attend_forward(kernel, ring, q, k, v, q_segment_ids, kv_segment_ids):
    def visit(so_far, keys):
        k, v, kv_segment_ids = keys
        y, log_total = kernel.forward(q, k, v, q_segment_ids, kv_segment_ids)
        block = y.astype(jnp.float32), log_total
        return block if so_far is None else _merge(so_far, block)

    y, log_total = _go_round(visit, (k, v, kv_segment_ids), ring)
    y = jnp.where(_sees(log_total), y, 0).astype(q.dtype)
    y, log_total = (checkpoint_name(x, RESIDUALS) for x in (y, log_total))
    return y, (q, k, v, q_segment_ids, kv_segment_ids, y, log_total)


def _attend_backward(kernel, ring, saved, dy):
    q, k, v, q_segment_ids, kv_segment_ids, y, log_total = saved
    dy = jnp.where(_sees(log_total), dy, 0)

    def visit(so_far, keys):
        k, v, kv_segment_ids = keys
        if so_far is not None:
            dq, dkv = so_far
            # The gradients of the keys that are here now, by the chips that they have passed.
            so_far = dq, _pass_on(dkv, ring)
        grads = kernel.backward(q, k, v, q_segment_ids, kv_segment_ids, y, log_total, dy)
        dq, dk, dv = (x.astype(jnp.float32) for x in grads)
        block = dq, (dk, dv)
        return block if so_far is None else jax.tree.map(jnp.add, so_far, block)

    dq, dkv = _go_round(visit, (k, v, kv_segment_ids), ring)
    dk, dv = _pass_on(dkv, ring) if ring > 1 else dkv  # the last step is home
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _go_round(visit, keys, ring):
    """so_far = visit(so_far, keys), from None, for the keys of every chip of the ring in turn.

    The next keys are asked for before a visit begins, so that they travel while it computes.
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


def _pass_on(arrays, ring):
    """Arrays to the next chip of the ring, and those of the one before from it."""
    steps = [(chip, (chip + 1) % ring) for chip in range(ring)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, "ring", steps), arrays)


def _merge(a, b):
    """(y, log_total) of two sets of keys -> those of both."""
    log_total = jnp.logaddexp(a[1], b[1])
    return sum(jnp.exp(logs - log_total)[..., None] * y for y, logs in (a, b)), log_total


def _sees(log_total):
    """Whether a query sees a key, [B, A, N, 1]."""
    return log_total[..., None] > MASK_VALUE / 2
