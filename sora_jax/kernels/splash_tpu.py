"""Splash attention, JAX's Pallas kernel for TPUs, as one block of attention."""

import functools

import jax

from sora_jax import compat
from sora_jax.kernels.ring import MASK_VALUE, BlockKernel

LANES = 128  # of a TPU's vector registers: widths and blocks are multiples
MAX_BLOCK = 512


def make_splash(*, interpret=False) -> BlockKernel:
    """The kernel; `interpret` runs its program step by step on any backend, for tests."""

    def options(q, k):
        return {
            "block_sizes": compat.splash_block_sizes(block_size(q.shape[2]), block_size(k.shape[2])),
            "mask_value": MASK_VALUE,
            "interpret": interpret,
        }

    # Under jax.checkpoint JAX drops an unused call of a jitted function, but not of a bare Pallas kernel: without
    # jit a forward pass whose results are saved would run again.
    @jax.jit
    def forward(q, k, v, q_segment_ids, kv_segment_ids):
        run = functools.partial(compat.splash_forward, **options(q, k))
        return jax.vmap(run)(q, k, v, compat.splash_segment_ids(q_segment_ids, kv_segment_ids))

    def backward(q, k, v, q_segment_ids, kv_segment_ids, y, log_total, dy):
        run = functools.partial(compat.splash_backward, **options(q, k))
        segment_ids = compat.splash_segment_ids(q_segment_ids, kv_segment_ids)
        return jax.vmap(run)(q, k, v, segment_ids, y, log_total, dy)

    return BlockKernel(forward, backward, block=block_size, width=LANES)


def block_size(length: int) -> int:
    """Queries or keys of a block: all of them up to MAX_BLOCK, a multiple of LANES."""
    return min(MAX_BLOCK, -(-length // LANES) * LANES)


splash = make_splash()
