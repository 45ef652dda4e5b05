"""The backward kernel of attention on TPUs: all three gradients from one computation of the logits.

Steps follow each other by block of keys, whose gradients stay in the chip's fast memory until the block is done.
The gradient of the queries of a row stays there whole, so that no partial one is ever written; rows too long for
that are cut into parts, which see all keys one after the other.

Source: Dao 2023 (arXiv 2307.08691), algorithm 2, with logits to base 2; layout as in `forward`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sora_jax.kernels.ring import MASK_VALUE, PAD_QUERY
from sora_jax.kernels.tpu import pairs
from sora_jax.kernels.tpu.blocks import Blocks
from sora_jax.kernels.tpu.forward import LN2, dot

UNSEEN = 1e30  # the log of the softmax's sum of a query that sees no key; its weights come out as 0


def backward(arguments, y, log_total, dy, *, blocks: Blocks, interpret=False):
    """Gradients (dq [B, A, N, K] in q's type, dk, dv [B, A, M, K] float32).

    Args:
      arguments: of `forward`: (q, k, v, q_segment_ids, kv_segment_ids).
      y, log_total: what it returned, for these keys or for more.
      dy: gradient of y, 0 for queries that see no key.
    """
    q, k, v, q_segment_ids, kv_segment_ids = arguments
    N, block_q = q.shape[2], blocks.q
    # The term that the softmax's normalisation subtracts from the gradient of each of a query's weights.
    mean = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)
    log_total = jnp.where(log_total > MASK_VALUE / 2, log_total / LN2, UNSEEN)
    of_queries = q, dy, log_total, mean
    run = functools.partial(_part, k, v, kv_segment_ids, blocks=blocks, interpret=interpret)
    parts = -(-N // blocks.resident)
    if parts == 1:
        return run(q_segment_ids, of_queries)
    size = -(-N // (parts * block_q)) * block_q
    more = parts * size - N

    def cut(x, axis, filler=0):
        x = jnp.pad(x, [(0, more if dim == axis else 0) for dim in range(x.ndim)], constant_values=filler)
        shape = (*x.shape[:axis], parts, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    def add(so_far, part):
        dq, *dkv = run(*part)
        return jax.tree.map(jnp.add, so_far, tuple(dkv)), dq

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
    cuts = cut(q_segment_ids, 1, PAD_QUERY), tuple(cut(x, 2) for x in of_queries)
    (dk, dv), dq = jax.lax.scan(add, zeros, cuts)
    return jnp.moveaxis(dq, 0, 2).reshape(*q.shape[:2], -1, q.shape[3])[:, :, :N], dk, dv


def _part(k, v, kv_segment_ids, q_segment_ids, of_queries, *, blocks: Blocks, interpret):
    q, dy, log_total, mean = of_queries
    (_, A, N, K), block_q, block_kv = q.shape, blocks.q, blocks.kv
    places, flags, number = pairs.pairs(q_segment_ids, kv_segment_ids, block_q, block_kv, by_query=False)
    of_q, of_k, row = pairs.specs(block_q, block_kv, K)
    gradient = jax.ShapeDtypeStruct(k.shape, jnp.float32)
    dq, dk, dv = pl.pallas_call(
        _kernel,
        name="attention_backward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(A, number),
            in_specs=[of_q, of_k, of_k, *pairs.segment_specs(block_q, block_kv), of_q, row, row],
            out_specs=[
                pl.BlockSpec((None, None, N, K), lambda h, n, places, *_: (pairs.row(places[n]), h, 0, 0)),
                of_k,
                of_k,
            ],
            scratch_shapes=[
                pltpu.VMEM((N // block_q, K, block_q), jnp.float32),
                *[pltpu.VMEM((K, block_kv), jnp.float32)] * 2,
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), gradient, gradient],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=blocks.vmem
        ),
        cost_estimate=pairs.cost(q, k, products=5),
        interpret=interpret,
    )(
        *(places, flags, q, k, v, q_segment_ids[:, None], kv_segment_ids[:, None], dy),
        *(x[:, :, None] for x in (log_total, mean)),
    )
    return dq, dk, dv


def _kernel(places, flags, *references):
    q, k, v, q_ids, kv_ids, dy, log_total, mean, dq, dk, dv, total_dq, total_dk, total_dv = references
    n = pl.program_id(1)
    flag = flags[n]
    of_q = total_dq.at[pairs.q_block(places[n])]

    @pl.when(flag & pairs.FIRST_OF_ROW > 0)
    def _():
        total_dq[...] = jnp.zeros_like(total_dq)

    @pl.when(flag & pairs.FIRST > 0)
    def _():
        total_dk[...] = jnp.zeros_like(total_dk)
        total_dv[...] = jnp.zeros_like(total_dv)

    def visit(masked):
        logits = dot(k[...], q[...], 1, 1)
        if masked:
            logits = jnp.where(pairs.seen(q_ids, kv_ids), logits, MASK_VALUE)
        weights = jnp.exp2(logits - log_total[...])
        dlogits = (weights * (dot(v[...], dy[...], 1, 1) - mean[...])).astype(k.dtype)
        total_dv[...] += dot(dy[...], weights.astype(dy.dtype), 0, 1)
        total_dk[...] += dot(q[...], dlogits, 0, 1)
        of_q[...] += dot(k[...], dlogits, 0, 0)

    pl.when(flag & pairs.WHOLE > 0)(functools.partial(visit, False))
    pl.when(flag & pairs.PARTLY > 0)(functools.partial(visit, True))

    # d 2^s = ln 2 * 2^s
    @pl.when(flag & pairs.LAST > 0)
    def _():
        dk[...] = (LN2 * total_dk[...]).T
        dv[...] = total_dv[...].T

    @pl.when(flag & pairs.LAST_OF_ROW > 0)
    def _():
        @pl.loop(0, total_dq.shape[0])
        def _(block):
            size = total_dq.shape[2]
            dq[pl.ds(pl.multiple_of(block * size, size), size), :] = (LN2 * total_dq[block]).T.astype(dq.dtype)
