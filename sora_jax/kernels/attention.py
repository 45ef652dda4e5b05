"""Attention: one door for every model, with segments, and rotary positions in three dimensions."""

import functools

import jax
import jax.numpy as jnp

from sora_jax.core.errors import InputError
from sora_jax.core.mesh import platform, spec
from sora_jax.kernels.chunked import chunked, splash
from sora_jax.kernels.cudnn_gpu import cudnn, suits
from sora_jax.kernels.ring import attend

KERNELS = {"chunked": chunked, "splash": splash()}
SMALL = 2**20  # queries x keys: up to here the logits may as well be held
SMALL_ON_CPU = 2**16


def attention(q, k, v, q_segment_ids, kv_segment_ids, *, bias=None, kernel="auto", clips=None):
    """Softmax attention within segments: a query sees the keys of its own segment.

    Args:
      q: queries, [B, N, A, K], tokens over `ring` and `ulysses`, heads over `tensor`.
      k, v: keys and values, [B, M, A, K].
      q_segment_ids, kv_segment_ids: [B, N] and [B, M] int32.
      bias: added to the logits before the softmax, [A, N, M] float32.
      kernel: "xla" holds all logits, and is the only one with a bias; "chunked", "splash" and "cudnn" hold a block
        of them; "auto" takes what suits the platform and the size.
      clips: in a row at most, as segments 1 ... clips from its beginning on, 0 for padding; None: unknown. cuDNN
        wants to know, and leaves padding out.
    Returns: [B, N, A, K], laid out as q. A query that sees no key gets 0.
    Raises: InputError if cuDNN is asked for what it can't do.
    """
    ring = jax.sharding.get_abstract_mesh().shape["ring"]
    name = "xla" if bias is not None else chosen(kernel, q, k, clips, ring)
    # As many keys as queries go round the ring; few keys, or those of a kernel that can't, each chip gathers.
    goes_round = name in KERNELS and q.shape[1] == k.shape[1]
    # Ulysses (arXiv 2309.14509): trade token shards for head shards, so that each ring sees whole sequences.
    q_axes, kv_axes = "batch ring heads_all .", f"batch {'ring' if goes_round else '.'} heads_all ."
    q, k, v = jax.reshard(q, spec(q_axes)), *(jax.reshard(x, spec(kv_axes)) for x in (k, v))
    rows = [spec(" ".join(axes.split()[:2])) for axes in (q_axes, kv_axes)]
    q_segment_ids, kv_segment_ids = map(jax.reshard, (q_segment_ids, kv_segment_ids), rows)
    if name == "xla":
        mask = (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :])[:, None]
        if bias is not None:
            bias = jax.reshard(bias[None], spec(". heads_all ring ."))
        y = jax.nn.dot_product_attention(q, k, v, bias, mask)
        y = jnp.where(jnp.any(mask, axis=-1)[:, 0, :, None, None], y, 0)
    else:
        if name == "cudnn":
            function = functools.partial(cudnn, clips=clips)
        else:
            function = functools.partial(attend, KERNELS[name], ring=ring if goes_round else 1)
        y = jax.shard_map(
            function,
            in_specs=(spec(q_axes), spec(kv_axes), spec(kv_axes), *rows),
            out_specs=spec(q_axes),
            # Each array is split over all axes or is of integers: there is nothing that a check could find.
            check_vma=False,
        )(q, k, v, q_segment_ids, kv_segment_ids)
    return jax.reshard(y, spec("batch tokens heads ."))


def chosen(kernel: str, q, k, clips: int | None, ring: int) -> str:
    """What "auto" means here."""
    suited = platform() == "gpu" and ring == 1 and suits(q.dtype, q.shape[-1], clips)
    if kernel == "cudnn" and not suited:
        raise InputError(
            f"config.transformer.attention: 'cudnn' is for an NVIDIA GPU (Hopper, if rows hold several clips), "
            f"bfloat16, heads up to 128 wide and no ring; here are {platform()}, {q.dtype}, "
            f"{q.shape[-1]} and a ring of {ring}. 'auto' takes what there is"
        )
    if kernel != "auto":
        return kernel
    if platform() == "tpu":
        return "splash"
    if suited:
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


def rope_angles(positions, K: int, base: float = 10000.0):
    """Angles of 3-D rotary positions, one for each pair of head elements.

    The K / 2 pairs are shared out to (frame, row, column): rows and columns take K // 6 each, frames the
    rest; each axis has its own denominator, its share of K.

    Args:
      positions: (frame, row, column) of each patch, [B, N, 3].
      K: head width, even.
      base: frequencies fall from 1 to about its inverse.
    Returns: [B, N, K / 2] float32; bfloat16 would lose positions past 256.
    Source: Su et al. 2021 (arXiv 2104.09864), eq. 15, once per axis.
    """
    pairs = (K // 2 - 2 * (K // 6), K // 6, K // 6)
    angles = []
    for axis, count in enumerate(pairs):
        frequencies = base ** (-jnp.arange(count, dtype=jnp.float32) / count)
        angles.append(positions[..., axis, None].astype(jnp.float32) * frequencies)
    return jnp.concatenate(angles, axis=-1)


def rope_cos_sin(angles):
    """(cosines, sines) of the angles, each in float32, for `rotate`.

    By a loop of two turns: XLA's CPU backend would make them part of every rotation, anew for each layer, head and
    half, at ten times its cost (docs/performance.md), and does not heed a barrier.
    """
    cos, sin = jax.lax.map(lambda sine: jnp.where(sine, jnp.sin(angles), jnp.cos(angles)), jnp.arange(2) == 1)
    return cos, sin


def apply_rope(x, rope):
    """Rotate the pairs (i, i + K / 2) of each head; float32 inside.

    Args:
      x: [B, N, A, K].
      turns: of `rope_cos_sin`, [B, N, K / 2] each.
    Returns: like x.
    """
    cos, sin = (turn[:, :, None] for turn in rope)
    first, second = (half.astype(jnp.float32) for half in jnp.split(x, 2, axis=-1))
    turned = first * cos - second * sin, first * sin + second * cos
    # A half at a time is cast, here and in the gradient: all of x as float32 would be written to memory.
    return jnp.concatenate([half.astype(x.dtype) for half in turned], axis=-1)
