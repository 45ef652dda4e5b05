"""The blocks of the video autoencoder's encoder and decoder."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.mesh import is_split
from sora_jax.models.autoencoder.conv import CausalConv, Linear, Norm
from sora_jax.models.autoencoder.pixels import average_down, merge, repeat_up, split
from sora_jax.models.layers.params import RngKeys


class ResidualBlock(nnx.Module):
    def __init__(self, C_in: int, C_out: int, *, rngs: RngKeys):
        self.norm1 = Norm(C_in, rngs=rngs)
        self.conv1 = CausalConv(C_in, C_out, (3, 3, 3), rngs=rngs)
        self.norm2 = Norm(C_out, rngs=rngs)
        self.conv2 = CausalConv(C_out, C_out, (3, 3, 3), rngs=rngs)
        self.shortcut = None if C_in == C_out else Linear(C_in, C_out, rngs=rngs)

    def __call__(self, x, cache=None):
        cache1, cache2 = cache or (None, None)
        h, cache1 = self.conv1(jax.nn.silu(self.norm1(x)), cache1)
        h, cache2 = self.conv2(jax.nn.silu(self.norm2(h)), cache2)
        return h + (x if self.shortcut is None else self.shortcut(x)), (cache1, cache2)


class FrameAttention(nnx.Module):
    """One head of attention among the pixels of each frame."""

    MAX_LOGITS = 2**26  # held at once; for more, the queries go a few columns, or rows, at a time

    def __init__(self, C: int, *, rngs: RngKeys):
        self.norm = Norm(C, rngs=rngs)
        self.qkv = Linear(C, 3 * C, rngs=rngs)
        self.out = Linear(C, C, init=jax.nn.initializers.zeros, rngs=rngs)

    def __call__(self, x):
        B, F, H, W, C = x.shape
        q, k, v = jnp.split(self.qkv(self.norm(x)), 3, axis=-1)
        # Queries stay split; keys and values of a frame are needed whole.
        k, v = (merge(_frames_gathered(a), 2) for a in (k, v))

        @jax.checkpoint
        def attend(q):  # [B, F, rows, columns, C]
            logits = jnp.einsum("bfhwc,bfnc->bfhwn", q, k, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(logits * C**-0.5, axis=-1).astype(v.dtype)
            return jnp.einsum("bfhwn,bfnc->bfhwc", weights, v)

        axis = 2 if is_split(q, 3) else 3
        lines = q.shape[axis]
        chunk = max(1, min(lines, self.MAX_LOGITS * lines // (B * F * (H * W) ** 2)))
        while lines % chunk:
            chunk -= 1
        if chunk == lines:
            h = attend(q)
        else:
            h = jax.lax.map(attend, jnp.moveaxis(split(q, axis, chunk), axis, 0))
            h = merge(jnp.moveaxis(h, 0, axis), axis)
        return x + self.out(h)


def _frames_gathered(x):
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty:
        return x
    return jax.reshard(x, jax.P(*sharding.spec[:2]))


class MidBlock(nnx.Module):
    def __init__(self, C: int, *, rngs: RngKeys):
        self.block1 = ResidualBlock(C, C, rngs=rngs)
        self.attention = FrameAttention(C, rngs=rngs)
        self.block2 = ResidualBlock(C, C, rngs=rngs)

    def __call__(self, x, cache=None):
        cache1, cache2 = cache or (None, None)
        x, cache1 = self.block1(x, cache1)
        x, cache2 = self.block2(self.attention(x), cache2)
        return x, (cache1, cache2)


class ResampledBlocks(nnx.Module):
    """Residual blocks, then `resample`, a `Downsample` or `Upsample`, if there is one.

    Args:
      blocks: number of residual blocks; the first goes from C_in to C_out channels.
      shortcut: add the input, resampled without weights, to the output.
    """

    def __init__(self, C_in: int, C_out: int, blocks: int, *, resample, shortcut: bool, rngs: RngKeys):
        pairs = itertools.pairwise([C_in] + [C_out] * blocks)
        self.blocks = nnx.List([ResidualBlock(*pair, rngs=rngs) for pair in pairs])
        self.resample, self.shortcut = resample, shortcut
        self.side = 1 if resample is None else 2
        self.frames = 1 if resample is None or resample.time is None else 2

    def run(self, x, cache):
        *caches, resample_cache = cache or (None,) * (len(self.blocks) + 1)
        new = []
        for block, block_cache in zip(self.blocks, caches, strict=True):
            x, block_cache = block(x, block_cache)
            new.append(block_cache)
        if self.resample is not None:
            x, resample_cache = self.resample(x, resample_cache)
        return x, (*new, resample_cache)


class DownBlock(ResampledBlocks):
    def __call__(self, x, cache=None):
        y, new_cache = self.run(x, cache)
        if self.shortcut:
            y = y + average_down(x, y.shape[-1], frames=self.frames, side=self.side)
        return y, new_cache


class UpBlock(ResampledBlocks):
    def __call__(self, x, cache=None):
        y, new_cache = self.run(x, cache)
        if self.shortcut and self.resample is not None:
            y = y + repeat_up(x, y.shape[-1], frames=self.frames, side=self.side, first=cache is None)
        return y, new_cache
