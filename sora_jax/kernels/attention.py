"""Attention: the one entry point of all models, and the one place where its kernel is chosen."""

import functools

import jax
import jax.numpy as jnp

from sora_jax.core.errors import InputError
from sora_jax.core.mesh import platform, spec
from sora_jax.kernels.chunked import chunked
from sora_jax.kernels.cudnn_gpu import cudnn_attention, supports
from sora_jax.kernels.reference import reference_attention
from sora_jax.kernels.ring import ring_attention
from sora_jax.kernels.tpu.attention import pallas

BLOCK_KERNELS = {"chunked": chunked, "pallas": pallas}
# Up to so many logits (queries x keys) "auto" holds them all.
SMALL = 2**20
SMALL_ON_CPU = 2**16


def attention(q, k, v, q_segment_ids, kv_segment_ids, *, bias=None, kernel="auto", clips=None):
    """Softmax attention within segments: a query sees the keys of its own segment.

    Args:
      q: queries, [B, N, A, K], tokens over `ring` and `ulysses`, heads over `tensor`.
      k, v: keys and values, [B, M, A, K].
      q_segment_ids, kv_segment_ids: [B, N] and [B, M] int32. 0 is padding, which sees nothing and costs next to
        nothing. The tokens of a segment lie next to each other, or kernels compute more than they need.
      bias: added to the logits before the softmax, [A, N, M] float32.
      kernel: "xla" holds all logits, and is the only one that takes a bias; "chunked", "pallas" (TPU) and "cudnn"
        (GPU) hold a block of them; "auto" chooses by platform and size.
      clips: maximum number of clips in a packed sequence, whose segments are then 1 ... clips in order, 0 for
        padding; None: unknown. cuDNN needs it.
    Returns: [B, N, A, K], laid out as q. Padding and a query that sees no key get 0.
    Raises: InputError if cuDNN is asked for what it can't do.
    """
    ring = jax.sharding.get_abstract_mesh().shape["ring"]
    name = "xla" if bias is not None else choose_kernel(kernel, q, k, clips, ring)
    # Keys travel round the ring where there are as many as queries; a few of them, or those of a kernel that has
    # no ring form, are gathered on each chip.
    in_ring = name in BLOCK_KERNELS and q.shape[1] == k.shape[1]
    # Ulysses (arXiv 2309.14509): trade token shards for head shards, so that each ring sees whole sequences.
    q_axes, kv_axes = "batch ring heads_all .", f"batch {'ring' if in_ring else '.'} heads_all ."
    q = jax.reshard(q, spec(q_axes))
    k, v = (jax.reshard(x, spec(kv_axes)) for x in (k, v))
    segment_specs = [spec(" ".join(axes.split()[:2])) for axes in (q_axes, kv_axes)]
    q_segment_ids, kv_segment_ids = map(jax.reshard, (q_segment_ids, kv_segment_ids), segment_specs)
    if name == "xla":
        if bias is not None:
            bias = jax.reshard(bias[None], spec(". heads_all ring ."))
        y = reference_attention(q, k, v, q_segment_ids, kv_segment_ids, bias)
    else:
        if name == "cudnn":
            function = functools.partial(cudnn_attention, clips=clips)
        else:
            function = functools.partial(ring_attention, BLOCK_KERNELS[name], ring=ring if in_ring else 1)
        y = jax.shard_map(
            function,
            in_specs=(spec(q_axes), spec(kv_axes), spec(kv_axes), *segment_specs),
            out_specs=spec(q_axes),
            # Every array is split over all axes or holds integers: the check could find nothing.
            check_vma=False,
        )(q, k, v, q_segment_ids, kv_segment_ids)
    return jax.reshard(y, spec("batch tokens heads ."))


def choose_kernel(kernel: str, q, k, clips: int | None, ring: int) -> str:
    """The name of the kernel that runs, for arguments of `attention` and a ring of this size.

    Raises: InputError if `kernel` is "cudnn" and this machine or these arguments do not suit it.
    """
    suits_cudnn = platform() == "gpu" and ring == 1 and supports(q.dtype, q.shape[-1], clips)
    if kernel == "cudnn" and not suits_cudnn:
        raise InputError(
            f"config.transformer.attention: 'cudnn' needs an NVIDIA GPU (Hopper for several clips in a sequence), "
            f"bfloat16, heads up to 128 wide and no ring; this is {platform()}, {q.dtype}, {q.shape[-1]} wide, "
            f"ring {ring}. Use 'auto'"
        )
    if kernel != "auto":
        return kernel
    if platform() == "tpu":
        return "pallas"
    if suits_cudnn:
        return "cudnn"
    small = SMALL_ON_CPU if platform() == "cpu" else SMALL
    return "xla" if q.shape[1] * k.shape[1] <= small else "chunked"


def split_heads(x, A: int, *, layout="batch tokens heads ."):
    """[B, N, A * K] -> [B, N, A, K]."""
    B, N, _ = x.shape
    return jnp.reshape(x, (B, N, A, -1), out_sharding=spec(layout))


def merge_heads(x):
    """[B, N, A, K] -> [B, N, A * K]."""
    B, N, *_ = x.shape
    return jnp.reshape(x, (B, N, -1), out_sharding=spec("batch tokens heads"))
