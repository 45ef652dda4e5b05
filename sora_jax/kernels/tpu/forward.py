"""The forward kernel of attention on TPUs: a Pallas program over the pairs of blocks that share a clip.

Logits are held transposed, [keys, queries]. Both products then have their long dimensions as rows of the MXU's
weights and stream the narrow one, the width of a head: an MXU of 256 x 256 would be half empty otherwise. The
softmax's maximum and sum are rows, which need no reduction across lanes.

Source: Dao 2023 (arXiv 2307.08691), algorithm 1, with logits to base 2.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sora_jax.kernels.ring import MASK_VALUE
from sora_jax.kernels.tpu import pairs
from sora_jax.kernels.tpu.blocks import Blocks

LN2 = math.log(2)
# Logits to base 2 up to +- this are exponentiated without subtracting their maximum: 2^64 times the longest
# sequence is far from float32's limit, and 2^-64 from its smallest number.
SAFE_LOGIT = 64.0


def forward(q, k, v, q_segment_ids, kv_segment_ids, *, blocks: Blocks, interpret=False):
    """Softmax attention of base 2 within segments.

    Args:
      q: [B, A, N, K], scaled by log2(e) / sqrt(K). k, v: [B, A, M, K].
      q_segment_ids, kv_segment_ids: [B, N], [B, M] int32; those of padding are negative.
      blocks: of queries and keys, which divide N and M.
    Returns: (y [B, A, N, K] in q's type, natural log of the softmax's sum [B, A, N] float32). For a query that
      sees no key y is 0 and the log MASK_VALUE.
    """
    (B, A, N, K), block_q, block_kv = q.shape, blocks.q, blocks.kv
    places, flags, number = pairs.pairs(q_segment_ids, kv_segment_ids, block_q, block_kv, by_query=True)
    of_q, of_k, row = pairs.specs(block_q, block_kv, K)
    y, log_total = pl.pallas_call(
        _kernel,
        name="attention_forward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(A, number),
            in_specs=[of_q, of_k, of_k, *pairs.segment_specs(block_q, block_kv)],
            out_specs=[of_q, row],
            scratch_shapes=[
                pltpu.VMEM((K, block_q), jnp.float32),
                pltpu.VMEM((pairs.SUBLANES, block_q), jnp.float32),
                pltpu.VMEM((1, block_q), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, A, 1, N), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=blocks.vmem
        ),
        cost_estimate=pairs.cost(q, k, products=2),
        interpret=interpret,
    )(places, flags, _are_safe(q, k), q, k, v, q_segment_ids[:, None], kv_segment_ids[:, None])
    return y, log_total[:, :, 0]


def _are_safe(q, k):
    """Whether no logit of a head can exceed SAFE_LOGIT, by |q k| <= |q| |k|: [B * A] int32."""
    norms = (jnp.max(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1), axis=-1) for x in (q, k))
    return (math.prod(norms) < SAFE_LOGIT**2).astype(jnp.int32).reshape(-1)


def _kernel(places, flags, safe, *references):
    q, k, v, q_ids, kv_ids, y, log_total, total_y, total, largest = references
    h, n = pl.program_id(0), pl.program_id(1)
    flag = flags[n]
    bounded = safe[pairs.row(places[n]) * pl.num_programs(0) + h] > 0

    @pl.when(flag & pairs.FIRST > 0)
    def _():
        total_y[...] = jnp.zeros_like(total_y)
        total[...] = jnp.zeros_like(total)
        # Above the logit of a hidden key, so that the weight of one is 0 even before a key is seen.
        largest[...] = jnp.where(bounded, 0.0, jnp.full_like(largest, MASK_VALUE / 2))

    def visit(masked, bounded):
        logits = dot(k[...], q[...], 1, 1)
        if masked:
            logits = jnp.where(pairs.seen(q_ids, kv_ids), logits, MASK_VALUE)
        if not bounded:
            before = largest[...]
            largest[...] = jnp.maximum(before, jnp.max(logits, axis=0, keepdims=True))
            logits -= largest[...]
            shrink = jnp.exp2(before - largest[...])
            total[...] *= shrink
            total_y[...] *= shrink
        weights = jnp.exp2(logits)
        total[...] += jnp.sum(weights.reshape(-1, pairs.SUBLANES, weights.shape[1]), axis=0)
        total_y[...] += dot(v[...], weights.astype(v.dtype), 0, 0)

    for kind in (pairs.WHOLE, pairs.PARTLY):
        for limit in (True, False):
            run = (flag & kind > 0) & (bounded == limit)
            pl.when(run)(functools.partial(visit, kind == pairs.PARTLY, limit))

    @pl.when(flag & pairs.LAST > 0)
    def _():
        sums = jnp.sum(total[...], axis=0, keepdims=True)
        sees = sums > 0
        sums = jnp.where(sees, sums, 1.0)
        y[...] = (total_y[...] / sums).T.astype(y.dtype)
        log_total[...] = jnp.where(sees, LN2 * (largest[...] + jnp.log2(sums)), MASK_VALUE)


def dot(a, b, a_dim, b_dim):
    """The product of two matrices over a dimension of each, in float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, (((a_dim,), (b_dim,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
