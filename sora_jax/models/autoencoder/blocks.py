"""The parts that the encoder and the decoder of the video autoencoder share."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.models.autoencoder.conv import CausalConv, Linear, Norm, merge, split
from sora_jax.models.layers.params import RngKeys


class ResidualBlock(nnx.Module):
    def __init__(self, C_in: int, C_out: int, *, rngs: RngKeys):
        self.norm1 = Norm(C_in, rngs=rngs)
        self.conv1 = CausalConv(C_in, C_out, (3, 3, 3), rngs=rngs)
        self.norm2 = Norm(C_out, rngs=rngs)
        self.conv2 = CausalConv(C_out, C_out, (3, 3, 3), rngs=rngs)
        self.shortcut = None if C_in == C_out else Linear(C_in, C_out, rngs=rngs)

    def __call__(self, x, past=None):
        past1, past2 = past or (None, None)
        h, past1 = self.conv1(jax.nn.silu(self.norm1(x)), past1)
        h, past2 = self.conv2(jax.nn.silu(self.norm2(h)), past2)
        return h + (x if self.shortcut is None else self.shortcut(x)), (past1, past2)


class FrameAttention(nnx.Module):
    """One head of attention among the pixels of each frame."""

    # Scores held at once, in elements; above it, the queries go column by column.
    SCORES = 2**26

    def __init__(self, C: int, *, rngs: RngKeys):
        self.norm = Norm(C, rngs=rngs)
        self.qkv = Linear(C, 3 * C, rngs=rngs)
        self.out = Linear(C, C, init=jax.nn.initializers.zeros, rngs=rngs)

    def __call__(self, x):
        B, F, H, W, C = x.shape
        q, k, v = jnp.split(self.qkv(self.norm(x)), 3, axis=-1)
        # Queries keep their rows' shards; keys and values of a frame are needed whole.
        k, v = (merge(_rows_gathered(a), 2) for a in (k, v))

        @jax.checkpoint
        def attend(q):  # [B, F, H, w, C]
            scores = jnp.einsum("bfhwc,bfnc->bfhwn", q, k, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(scores * C**-0.5, axis=-1).astype(v.dtype)
            return jnp.einsum("bfhwn,bfnc->bfhwc", weights, v)

        columns = max(1, min(W, self.SCORES // (B * F * H * H * W)))
        while W % columns:
            columns -= 1
        if columns == W:
            h = attend(q)
        else:
            h = jax.lax.map(attend, jnp.moveaxis(split(q, 3, columns), 3, 0))
            h = merge(jnp.moveaxis(h, 0, 3), 3)
        return x + self.out(h)


def _rows_gathered(x):
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty:
        return x
    batch, frames, _, *rest = sharding.spec
    return jax.reshard(x, jax.P(batch, frames, None, *rest))


class Middle(nnx.Module):
    def __init__(self, C: int, *, rngs: RngKeys):
        self.block1 = ResidualBlock(C, C, rngs=rngs)
        self.attention = FrameAttention(C, rngs=rngs)
        self.block2 = ResidualBlock(C, C, rngs=rngs)

    def __call__(self, x, past=None):
        past1, past2 = past or (None, None)
        x, past1 = self.block1(x, past1)
        x, past2 = self.block2(self.attention(x), past2)
        return x, (past1, past2)


class Level(nnx.Module):
    """Residual blocks, then a change of size: of rows and columns by `side`, of frames by `frames`."""

    def __init__(self, C_in: int, C_out: int, blocks: int, *, resample, rngs: RngKeys):
        widths = [C_in] + [C_out] * blocks
        pairs = itertools.pairwise(widths)
        self.blocks = nnx.List([ResidualBlock(*pair, rngs=rngs) for pair in pairs])
        self.resample = resample
        self.side = 1 if resample is None else 2
        self.frames = 1 if resample is None or resample.time is None else 2

    def __call__(self, x, past=None):
        *past, past_resample = past or (None,) * (len(self.blocks) + 1)
        kept = []
        for block, past_block in zip(self.blocks, past, strict=True):
            x, past_block = block(x, past_block)
            kept.append(past_block)
        if self.resample is not None:
            x, past_resample = self.resample(x, past_resample)
        return x, (*kept, past_resample)
