"""The diffusion transformer in Wan's form: self-attention, cross-attention to text, MLP, modulated by time.

Clips lie packed in sequences, and each patch has its own noise time. The modulation is computed once for each
distinct time of a sequence and selected for each patch inside a block, so that no [B, N, 6, D] is stored.

Source: Peebles & Xie 2022 (arXiv 2212.09748); Wan 2025 (arXiv 2503.20314), section 4.2.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.config.schema import TransformerSettings
from sora_jax.core.mesh import spec
from sora_jax.core.patches import PatchBatch
from sora_jax.kernels.attention import attention
from sora_jax.models.layers.linear import linear, normal_002, replicated_linear
from sora_jax.models.layers.lora import adaptable_linear, no_adapter
from sora_jax.models.layers.mlp import Mlp
from sora_jax.models.layers.modulation import select_modulation, sinusoid
from sora_jax.models.layers.norm import layer_norm, rms_norm
from sora_jax.models.layers.params import sharded
from sora_jax.models.layers.remat import run_stack, stack
from sora_jax.models.layers.rope import apply_rope, rope_angles, rope_cos_sin

EPSILON = 1e-6
IMAGE_EPSILON = 1e-5
TIME_SCALE = 1000.0  # Wan's time embedding takes times in [0, 1000]
residual = spec("batch tokens .")


class Conditioning(NamedTuple):
    """The inputs that all blocks share.

    modulation: one row for each time of a sequence, [B, T, 6, D] float32.
    one_hot: the time of each patch, [B, N, T] float32.
    rope: (cosines, sines) of the patches' positions, [B, N, K / 2] each.
    segment_ids: [B, N] int32. text: [B, S, D]. text_segment_ids: [B, S] int32.
    image: ([B, I, D] float32, their segments [B, I] int32), or None.
    """

    modulation: jax.Array
    one_hot: jax.Array
    rope: tuple[jax.Array, jax.Array]
    segment_ids: jax.Array
    text: jax.Array
    text_segment_ids: jax.Array
    image: Any

    @property
    def clips(self) -> int:
        """Maximum number of clips in a sequence."""
        return max(self.modulation.shape[1] - 1, 1)


class Attention(nnx.Module):
    """Multi-head attention of x to context, with RMSNorm over all of q and of k before the heads are split.

    With `image`, the same queries also attend to an image, which has keys and values of its own.
    """

    def __init__(self, settings: TransformerSettings, *, image=False, adapter_of, rngs):
        D, dtype = settings.width, jnp.dtype(settings.dtype)
        self.A, self.kernel, self.dtype = settings.heads, settings.attention, dtype

        def project(name, axes):
            return adaptable_linear(D, D, axes, dtype=dtype, adapter=adapter_of(name), rngs=rngs)

        self.q, self.k, self.v = (project(name, "embed heads") for name in "qkv")
        self.out = project("out", "heads embed")
        self.q_norm = rms_norm(D, "heads", epsilon=EPSILON, rngs=rngs)
        self.k_norm = rms_norm(D, "heads", epsilon=EPSILON, rngs=rngs)
        if image:
            self.image_k, self.image_v = (project(name, "embed heads") for name in ("image_k", "image_v"))
            self.image_k_norm = rms_norm(D, "heads", epsilon=EPSILON, rngs=rngs)

    def __call__(self, x, context, x_segment_ids, context_segment_ids, *, clips, rope=None, image=None):
        """[B, N, D] float32.

        Args:
          x: [B, N, D]. context: [B, M, D]. x_segment_ids, context_segment_ids: [B, N], [B, M] int32.
          clips: maximum number in a sequence.
          rope: of x and of context, which are then the same.
          image: ([B, I, D], [B, I] int32 segments).
        """
        wide = spec("batch tokens heads")
        q = self._normed(self.q_norm, self._project(self.q, x, wide))
        k = self._normed(self.k_norm, self._project(self.k, context, wide))
        v = self._project(self.v, context, wide)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        y = attention(q, k, v, x_segment_ids, context_segment_ids, kernel=self.kernel, clips=clips)
        if image is not None:
            image, image_segment_ids = image
            # An image has an odd number of tokens: every chip holds them all.
            wide = spec("batch . heads")
            k = self._normed(self.image_k_norm, self._project(self.image_k, image, wide))
            v = self._project(self.image_v, image, wide)
            y += attention(q, k, v, x_segment_ids, image_segment_ids, kernel=self.kernel, clips=clips)
        return self.out(y, out_sharding=residual, heads_in=self.A).astype(jnp.float32)

    def _project(self, layer, x, wide):
        """[B, N, D] -> [B, N, A, K]."""
        return layer(x, out_sharding=wide, heads_out=self.A)

    def _normed(self, norm, y):
        return norm(y, heads=self.A).astype(self.dtype)


class TransformerBlock(nnx.Module):
    def __init__(self, settings: TransformerSettings, *, adapter_of, rngs):
        D = settings.width
        init = sharded(jax.nn.initializers.normal(D**-0.5), ". .")
        self.modulation = nnx.Param(init(rngs.params(), (6, D)))
        self.self_attention_norm = layer_norm(D, epsilon=EPSILON, affine=False, rngs=rngs)
        self.self_attention = Attention(
            settings, adapter_of=lambda name: adapter_of(f"self_attention.{name}"), rngs=rngs
        )
        self.cross_attention_norm = layer_norm(D, epsilon=EPSILON, affine=True, rngs=rngs)
        self.cross_attention = Attention(
            settings,
            image=bool(settings.image_width),
            adapter_of=lambda name: adapter_of(f"cross_attention.{name}"),
            rngs=rngs,
        )
        self.mlp_norm = layer_norm(D, epsilon=EPSILON, affine=False, rngs=rngs)
        self.mlp = Mlp(D, settings.mlp, dtype=jnp.dtype(settings.dtype), adapter_of=adapter_of, rngs=rngs)

    def __call__(self, x, c: Conditioning):
        """x [B, N, D] -> the same shape and type; summed in float32, and rounded once."""
        x, dtype = x.astype(jnp.float32), x.dtype
        m = c.modulation + self.modulation[...]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            select_modulation(m[:, :, i], c.one_hot) for i in range(6)
        )
        h = self.self_attention_norm(x) * (1 + scale) + shift
        x = x + gate * self.self_attention(h, h, c.segment_ids, c.segment_ids, rope=c.rope, clips=c.clips)
        h = self.cross_attention_norm(x)
        x = x + self.cross_attention(h, c.text, c.segment_ids, c.text_segment_ids, image=c.image, clips=c.clips)
        h = self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift
        return (x + mlp_gate * self.mlp(h).astype(jnp.float32)).astype(dtype)


class ImageProjection(nnx.Module):
    """Features of an image encoder, [B, I, image_width] -> [B, I, D] float32."""

    def __init__(self, settings: TransformerSettings, *, rngs):
        E, D, dtype = settings.image_width, settings.width, jnp.dtype(settings.dtype)
        if settings.image_positions:
            zeros = sharded(jax.nn.initializers.zeros, ". .")
            self.positions = nnx.Param(zeros(rngs.params(), (settings.image_positions, E)))
        self.norm_in = layer_norm(E, epsilon=IMAGE_EPSILON, affine=True, rngs=rngs)
        self.up = linear(E, E, ". embed", dtype=dtype, rngs=rngs)
        self.down = linear(E, D, ". embed", dtype=dtype, rngs=rngs)
        self.norm_out = layer_norm(D, epsilon=IMAGE_EPSILON, affine=True, rngs=rngs)

    def __call__(self, image):
        if hasattr(self, "positions"):
            # All clips of a sequence have as many image tokens, one clip after the other; padding may get any
            # position.
            of_clip, I = self.positions[...], image.shape[1]
            image = image + jnp.tile(of_clip, (-(-I // len(of_clip)), 1))[:I]
        layout = spec("batch . .")
        h = jax.nn.gelu(self.up(self.norm_in(image), out_sharding=layout), approximate=False)
        return self.norm_out(self.down(h, out_sharding=layout))


class DiT(nnx.Module):
    """Velocity of noisy patches.

    Some settings add inputs: latents beside the patches (Wan's image-to-video: the conditioning frames encoded,
    and which frames they are), and the features of an image encoder.

    Args:
      adapter_of: name of a block's layer -> (rank, scale) of its low-rank adapter, or None.
    """

    def __init__(self, settings: TransformerSettings, *, adapter_of=no_adapter, rngs):
        D, E, dtype = settings.width, settings.text_width, jnp.dtype(settings.dtype)
        P = math.prod(settings.patch) * settings.channels
        self.settings = settings

        def embed(d_in, d_out, dtype):
            return linear(d_in, d_out, ". embed", dtype=dtype, init=normal_002, rngs=rngs)

        self.patch_embedding = linear(P, D, ". embed", dtype=dtype, rngs=rngs)
        if settings.condition_channels:
            P_c = math.prod(settings.patch) * settings.condition_channels
            # Zeros: a model trained without these channels computes the same at first.
            zeros = jax.nn.initializers.zeros
            self.condition_embedding = linear(
                P_c, D, ". embed", dtype=dtype, init=zeros, use_bias=False, rngs=rngs
            )
        if settings.image_width:
            self.image_in = ImageProjection(settings, rngs=rngs)
        self.text_in, self.text_out = embed(E, D, dtype), embed(D, D, dtype)
        self.time_in, self.time_out = embed(settings.frequencies, D, jnp.float32), embed(D, D, jnp.float32)
        self.time_modulation = linear(D, 6 * D, ". embed", dtype=jnp.float32, rngs=rngs)
        self.blocks = stack(
            lambda rngs: TransformerBlock(settings, adapter_of=adapter_of, rngs=rngs), settings.layers, rngs=rngs
        )
        self.head_norm = layer_norm(D, epsilon=EPSILON, affine=False, rngs=rngs)
        self.head_modulation = nnx.Param(
            sharded(jax.nn.initializers.normal(D**-0.5), ". .")(rngs.params(), (2, D))
        )
        self.head = linear(D, P, "embed .", dtype=dtype, init=jax.nn.initializers.zeros, rngs=rngs)

    def __call__(self, batch: PatchBatch, patches, times, time_index):
        """Velocity (noise - data) of each patch, or the data if the model was trained to predict them.

        Args:
          batch: describes the patches: positions, segment_ids, text (embedded, [B, S, E]), text_segment_ids,
            condition, image and image_segment_ids; its own patches are not read.
          patches: noisy, [B, N, P] float.
          times: the distinct times of each sequence, in [0, 1], 0 = data, [B, T] float32; a sequence has at most
            T - 1 clips, or one.
          time_index: which of its sequence's times a patch has, [B, N] int32.
        Returns: [B, N, P] float32.
        """
        settings = self.settings
        patches, positions, text = (jax.reshard(a, residual) for a in (patches, batch.positions, batch.text))
        time_index, segment_ids, text_segment_ids = (
            jax.reshard(a, spec("batch tokens")) for a in (time_index, batch.segment_ids, batch.text_segment_ids)
        )
        e, modulation = self._embed_times(times)
        text = self._embed_text(text)
        one_hot = jax.nn.one_hot(time_index, times.shape[1], dtype=jnp.float32)
        rope = rope_cos_sin(rope_angles(positions, settings.width // settings.heads, settings.rotary_base))
        x = self._embed_patches(patches, batch.condition)
        image = None
        if batch.image is not None:
            image = self.image_in(jax.reshard(batch.image, spec("batch . .")))
            image = image, jax.reshard(batch.image_segment_ids, spec("batch ."))
        conditioning = Conditioning(modulation, one_hot, rope, segment_ids, text, text_segment_ids, image)
        x = run_stack(
            self.blocks,
            x.astype(settings.dtype),  # the type in which each block's input is kept for the backward pass
            lambda block, x: block(x, conditioning),
            remat=settings.remat,
            unroll=settings.unroll,
        )
        shift, scale = (select_modulation(e + self.head_modulation[i], one_hot) for i in range(2))
        x = self.head_norm(x.astype(jnp.float32)) * (1 + scale) + shift
        return self.head(x, out_sharding=residual).astype(jnp.float32)

    def _embed_times(self, times):
        """Times [B, T] -> (embeddings [B, T, D], the blocks' modulation [B, T, 6, D]), float32."""
        e = sinusoid(jax.reshard(times, spec("few .")) * TIME_SCALE, self.settings.frequencies)
        e = replicated_linear(self.time_out, jax.nn.silu(replicated_linear(self.time_in, e)))
        modulation = replicated_linear(self.time_modulation, jax.nn.silu(e))
        e, modulation = (jax.reshard(y, spec("batch . .")) for y in (e, modulation))
        return e, modulation.reshape(*times.shape, 6, self.settings.width)

    def _embed_text(self, text):
        h = jax.nn.gelu(self.text_in(text, out_sharding=residual), approximate=True)
        return self.text_out(h, out_sharding=residual)

    def _embed_patches(self, patches, condition):
        x = self.patch_embedding(patches, out_sharding=residual).astype(jnp.float32)
        if condition is not None:
            condition = jax.reshard(condition, residual)
            x += self.condition_embedding(condition, out_sharding=residual).astype(jnp.float32)
        return x
