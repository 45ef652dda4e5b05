"""Sizes of the blocks of the attention kernels on each chip, and the memory that they may take."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LANES = 128  # of a vector register: blocks are multiples
MAX_BLOCK = 1024  # queries or keys; docs/notes/kernels.md has the cycles of others
MIB = 2**20
# MiB of fast memory (VMEM) of one core. Source: jax.experimental.pallas.tpu.get_tpu_info.
VMEM = {"TPU v4": 16, "TPU v5 lite": 128, "TPU v5": 64, "TPU v5p": 64, "TPU v6 lite": 128, "TPU7x": 64}
BESIDE = 24  # MiB for blocks and intermediate results


class Blocks(NamedTuple):
    """Sizes for one chip.

    q, kv: queries and keys of a block.
    resident: queries whose gradient stays in fast memory, a multiple of q.
    vmem: bytes of fast memory that a kernel may take.
    """

    q: int
    kv: int
    resident: int
    vmem: int


def choose_blocks(q, k) -> Blocks:
    """Blocks for queries [B, A, N, K] and keys [B, A, M, K] on the chips of the current mesh."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    vmem = VMEM.get(device.device_kind if device else "", 64)
    block_q, K = block_size(q.shape[2]), q.shape[3]
    # The sum in float32, and two buffers of the result, whose rows fill whole registers.
    of_query = 4 * K + 2 * -(-K // LANES) * LANES * jnp.dtype(q.dtype).itemsize
    resident = max(1, (vmem - BESIDE) * MIB // (of_query * block_q)) * block_q
    return Blocks(block_q, block_size(k.shape[2]), resident, (vmem - 4) * MIB)


def block_size(length: int) -> int:
    """What `length` is padded to a multiple of, so that blocks are even: 1,200 become twice 640, not 1,024."""
    blocks = -(-length // MAX_BLOCK)
    return -(-length // (blocks * LANES)) * LANES
