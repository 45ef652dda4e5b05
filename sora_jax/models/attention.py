"""Attention: one door for every model, with segments, and rotary positions in three dimensions."""

import jax
import jax.numpy as jnp

from sora_jax.mesh import spec
from sora_jax.models.kernels import chunked, splash

KERNELS = {"chunked": chunked, "splash": splash}
SMALL = 2**20  # queries x keys: below, the logits may as well be held


def attention(q, k, v, q_segments, kv_segments, *, bias=None, scale=None, kernel="auto"):
    """Softmax attention within segments: a query sees the keys of its own segment.

    Args:
      q: queries, [B, N, A, K], tokens over `context`, heads over `tensor`.
      k, v: keys and values, [B, M, A, K].
      q_segments, kv_segments: [B, N] and [B, M] int32.
      bias: added to the logits before the softmax, [A, N, M] float32.
      scale: of the logits; K ** -0.5 if not given.
      kernel: "xla" holds all logits, and is the only one with a bias; "chunked" and "splash" hold a block of them;
        "auto" takes what suits the platform and the size.
    Returns: [B, N, A, K], laid out as q.
    """
    heads = spec("batch . heads_all .")
    # Ulysses (arXiv 2309.14509): trade token shards for head shards, so that each chip sees whole sequences.
    q, k, v = (jax.reshard(x, heads) for x in (q, k, v))
    q_segments, kv_segments = (jax.reshard(x, spec("batch .")) for x in (q_segments, kv_segments))
    if bias is None and (name := chosen(kernel, q.shape[1], k.shape[1])) != "xla":
        rows = spec("batch .")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        local = jax.shard_map(
            lambda *arrays: KERNELS[name](*arrays, scale),
            in_specs=(heads, heads, heads, rows, rows),
            out_specs=heads,
            # Each array is split over all axes or is of integers: there is nothing that a check could find.
            check_vma=False,
        )
        return jax.reshard(local(q, k, v, q_segments, kv_segments), spec("batch tokens heads ."))
    mask = (q_segments[:, :, None] == kv_segments[:, None, :])[:, None]
    if bias is not None:
        bias = jax.reshard(bias[None], spec(". heads_all . ."))
    y = jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale)
    return jax.reshard(y, spec("batch tokens heads ."))


def chosen(kernel: str, queries: int, keys: int) -> str:
    """What "auto" means here."""
    if kernel != "auto":
        return kernel
    if jax.default_backend() == "tpu":
        return "splash"
    return "xla" if queries * keys <= SMALL else "chunked"


def split_heads(x, A: int, *, layout="batch tokens heads ."):
    """[B, N, A * K] -> [B, N, A, K]."""
    B, N, _ = x.shape
    return jnp.reshape(x, (B, N, A, -1), out_sharding=spec(layout))


def merge_heads(x):
    """[B, N, A, K] -> [B, N, A * K]."""
    B, N, *_ = x.shape
    return jnp.reshape(x, (B, N, -1), out_sharding=spec("batch tokens heads"))


def rotary_angles(positions, K: int):
    """Angles of 3-D rotary positions, one for each pair of head elements.

    The K / 2 pairs are shared out to (frame, row, column): rows and columns take K // 6 each, frames the
    rest; each axis has its own denominator, its share of K.

    Args:
      positions: (frame, row, column) of each patch, [B, N, 3].
      K: head width, even.
    Returns: [B, N, K / 2] float32; bfloat16 would lose positions past 256.
    Source: Su et al. 2021 (arXiv 2104.09864), eq. 15, once per axis.
    """
    pairs = (K // 2 - 2 * (K // 6), K // 6, K // 6)
    angles = []
    for axis, count in enumerate(pairs):
        frequencies = 10000.0 ** (-jnp.arange(count, dtype=jnp.float32) / count)
        angles.append(positions[..., axis, None].astype(jnp.float32) * frequencies)
    return jnp.concatenate(angles, axis=-1)


def rotate(x, angles):
    """Rotate the pairs (i, i + K / 2) of each head by their angles; float32 inside.

    Args:
      x: [B, N, A, K].
      angles: [B, N, K / 2].
    Returns: like x.
    """
    cos, sin = (f(angles)[:, :, None].astype(jnp.float32) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)
