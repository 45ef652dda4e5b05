"""A text encoder in UMT5's form: relative positions, gated GELU, RMSNorm, no biases.

Source: Raffel et al. 2019 (arXiv 1910.10683); UMT5 (arXiv 2304.09151) gives each layer its own relative bias.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.config.schema import TextSettings
from sora_jax.core.mesh import spec
from sora_jax.kernels.relative import relative_attention
from sora_jax.models.layers.linear import linear
from sora_jax.models.layers.norm import rms_norm
from sora_jax.models.layers.params import bind, sharded
from sora_jax.models.layers.remat import run_stack, stack

EPSILON = 1e-6
PAD = 0  # the token
MIN_INITIAL_BIAS = -8.0  # farther tokens hardly count at first, but have a gradient
normal = jax.nn.initializers.normal


class TextSelfAttention(nnx.Module):
    def __init__(self, settings: TextSettings, *, rngs):
        E, A, K = settings.width, settings.heads, settings.head_dim
        self.settings = settings
        dtype = jnp.dtype(settings.dtype)

        def project(std):
            return linear(E, A * K, "embed heads", dtype=dtype, init=normal(std), use_bias=False, rngs=rngs)

        # Unlike T5's, q is as large as k and v, and logits are divided by sqrt(K). Adam's and Muon's steps are as
        # large for all matrices: with T5's small q one token would soon take all the attention.
        self.q, self.k, self.v = (project(E**-0.5) for _ in range(3))
        out_init = normal((A * K) ** -0.5)
        self.out = linear(A * K, E, "heads embed", dtype=dtype, init=out_init, use_bias=False, rngs=rngs)
        bias_init = sharded(functools.partial(nearby, max_distance=settings.max_distance), ". heads")
        self.relative_bias = nnx.Param(bias_init(rngs.params(), (settings.buckets, A)))

    def __call__(self, x, segment_ids):
        settings, wide = self.settings, spec("batch tokens heads")
        q, k, v = (f(x, out_sharding=wide, heads_out=settings.heads) for f in (self.q, self.k, self.v))

        def bias_of(distances):
            buckets = relative_buckets(distances, settings.buckets, settings.max_distance)
            return self.relative_bias[...].at[buckets].get(out_sharding=spec(". heads")).T

        y = relative_attention(q, k, v, segment_ids, bias_of, reach=settings.max_tokens)
        return self.out(y, out_sharding=spec("batch tokens ."), heads_in=settings.heads)


class GatedMlp(nnx.Module):
    def __init__(self, settings: TextSettings, *, rngs):
        E, M, dtype = settings.width, settings.mlp, jnp.dtype(settings.dtype)

        def project(axes, d_in, d_out):
            return linear(d_in, d_out, axes, dtype=dtype, init=normal(d_in**-0.5), use_bias=False, rngs=rngs)

        self.gate, self.up = project("embed mlp", E, M), project("embed mlp", E, M)
        self.down = project("mlp embed", M, E)

    def __call__(self, x):
        wide = spec("batch tokens mlp")
        h = jax.nn.gelu(self.gate(x, out_sharding=wide), approximate=True) * self.up(x, out_sharding=wide)
        return self.down(h, out_sharding=spec("batch tokens ."))


class TextBlock(nnx.Module):
    def __init__(self, settings: TextSettings, *, rngs):
        self.attention_norm = rms_norm(settings.width, ".", epsilon=EPSILON, rngs=rngs)
        self.attention = TextSelfAttention(settings, rngs=rngs)
        self.mlp_norm = rms_norm(settings.width, ".", epsilon=EPSILON, rngs=rngs)
        self.mlp = GatedMlp(settings, rngs=rngs)

    def __call__(self, x, segment_ids):  # [B, S, E] -> [B, S, E], float32
        x = x + self.attention(self.attention_norm(x), segment_ids).astype(jnp.float32)
        return x + self.mlp(self.mlp_norm(x)).astype(jnp.float32)


class TextEncoder(nnx.Module):
    """Tokens to embeddings; captions packed into one sequence do not see each other.

    A caption has at most `max_tokens` tokens.
    """

    def __init__(self, settings: TextSettings, *, rngs):
        self.settings = settings
        table_init = sharded(normal(1.0), ". embed")
        self.embedding = nnx.Param(table_init(rngs.params(), (settings.vocabulary, settings.width)))
        self.blocks = stack(lambda rngs: TextBlock(settings, rngs=rngs), settings.layers, rngs=rngs)
        self.norm = rms_norm(settings.width, ".", epsilon=EPSILON, rngs=rngs)

    def __call__(self, tokens, segment_ids):
        """Embeddings of tokens in the context of their segment.

        Args:
          tokens: [B, S] int32.
          segment_ids: the caption of each token, 0 = padding, [B, S] int32.
        Returns: [B, S, E] float32; 0 for padding.
        """
        tokens, segment_ids = (jax.reshard(x, spec("batch tokens")) for x in (tokens, segment_ids))
        if self.settings.padded:  # padding within a caption: the transformer sees it, this encoder does not
            segment_ids = jnp.where(tokens == PAD, 0, segment_ids)
        x = self.embedding[...].at[tokens].get(out_sharding=spec("batch tokens .")).astype(jnp.float32)
        x = run_stack(self.blocks, x, lambda block, x: block(x, segment_ids), remat="full")
        return jnp.where(segment_ids[..., None] > 0, self.norm(x), 0.0)


@functools.partial(jax.jit, static_argnums=0)
def embed(settings: TextSettings, params: dict, tokens, segment_ids):
    """`TextEncoder.__call__`, compiled."""
    return bind(TextEncoder, settings, params)(tokens, segment_ids)


def nearby(key, shape, dtype, *, max_distance: int, out_sharding):
    """Initial relative biases [buckets, heads] that favour near tokens: half of the heads look back, half ahead.

    With T5's own, nearly 0, a caption is a bag of words at first, and gets no gradient to change that. The slopes
    are ALiBi's (arXiv 2108.12409), from 1 to 1/8.
    """
    buckets, heads = shape
    half, exact = buckets // 2, buckets // 4
    bucket = jnp.arange(half)
    far = exact * (max_distance / exact) ** ((bucket - exact) / (half - exact))
    distance = jnp.where(bucket < exact, bucket, far)[:, None]
    pair, ahead = jnp.divmod(jnp.arange(heads), 2)
    slope = 2.0 ** (-3 * pair / max(heads // 2, 1))
    # Tokens on a head's other side count as three times as far.
    sides = [-slope * distance * jnp.where(ahead == side, 1, 3) for side in range(2)]
    bias = jnp.maximum(jnp.concatenate(sides), MIN_INITIAL_BIAS) + 0.1 * jax.random.normal(key, shape)
    return jax.reshard(bias.astype(dtype), out_sharding)


def relative_buckets(distance, buckets: int, max_distance: int):
    """The bucket of each distance key - query, int32.

    Half of the buckets are for keys after the query. In each half, the first half has one distance each, and the
    rest grow logarithmically up to `max_distance`.

    Source: Raffel et al. 2019 (arXiv 1910.10683), section 2.1.
    """
    half = buckets // 2
    exact = half // 2
    far = jnp.abs(distance)
    ratio = jnp.log(jnp.maximum(far, 1) / exact) / jnp.log(max_distance / exact)
    logarithmic = jnp.minimum(exact + (ratio * (half - exact)).astype(jnp.int32), half - 1)
    return jnp.where(distance > 0, half, 0) + jnp.where(far < exact, far, logarithmic)
