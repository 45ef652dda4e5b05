"""Attention on TPUs as one block of attention: own kernels in Pallas."""

import math

import jax

from sora_jax.kernels.ring import BlockKernel
from sora_jax.kernels.tpu import backward, forward
from sora_jax.kernels.tpu.blocks import block_size, choose_blocks


def make_kernel(*, interpret=False) -> BlockKernel:
    """The kernel; `interpret` runs its program step by step on any backend, for tests."""

    # Under jax.checkpoint JAX drops an unused call of a jitted function, but not of a bare Pallas kernel: without
    # jit a forward pass whose results are saved would run again.
    @jax.jit
    def run_forward(q, k, v, *segment_ids):
        return forward.forward(q, k, v, *segment_ids, blocks=choose_blocks(q, k), interpret=interpret)

    def run_backward(*arrays):
        *arguments, y, log_total, dy = arrays
        blocks = choose_blocks(*arguments[:2])
        return backward.backward(arguments, y, log_total, dy, blocks=blocks, interpret=interpret)

    return BlockKernel(run_forward, run_backward, block=block_size, width=1, scale=math.log2(math.e))


pallas = make_kernel()
