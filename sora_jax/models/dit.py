"""The diffusion transformer, in Wan's form: self-attention, cross-attention to text, MLP, modulated by time.

Patches of several clips lie packed in one row, and each patch has its own noise level: the modulation is computed
once per distinct level of a row and picked for each patch inside a block, so that no [B, N, 6, D] outlives it.

Source: Peebles & Xie 2022 (arXiv 2212.09748); Wan 2025 (arXiv 2503.20314), section 4.2.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.config.schema import TransformerSettings
from sora_jax.core.mesh import platform, spec
from sora_jax.kernels.attention import apply_rope, attention, merge_heads, rope_angles, rope_cos_sin, split_heads
from sora_jax.models.layers.linear import (
    Mlp,
    layer_norm,
    linear,
    no_adapter,
    normal_002,
    rms_norm,
    run_stack,
    sharded,
    sinusoid,
    stack,
)

EPSILON = 1e-6
IMAGE_EPSILON = 1e-5
TIME_SCALE = 1000.0  # Wan's time embedding takes times in [0, 1000]
FEW_LEVELS = 4  # up to here each patch's row is summed from them all
residual = spec("batch tokens .")


class Attention(nnx.Module):
    """Multi-head attention of x to context, with RMSNorm over all of q and k before the heads are split.

    With `image`, the same queries attend to an image as well, with keys and values of its own.
    """

    def __init__(self, settings: TransformerSettings, *, image=False, adapter_of, rngs):
        D, dtype = settings.width, jnp.dtype(settings.dtype)
        self.A, self.kernel, self.dtype = settings.heads, settings.attention, dtype

        def project(name, axes):
            return linear(D, D, axes, dtype=dtype, adapter=adapter_of(name), rngs=rngs)

        self.q, self.k, self.v = (project(name, "embed heads") for name in "qkv")
        self.out = project("out", "heads embed")
        self.q_norm = rms_norm(D, "heads", epsilon=EPSILON, rngs=rngs)
        self.k_norm = rms_norm(D, "heads", epsilon=EPSILON, rngs=rngs)
        if image:
            self.image_k, self.image_v = (project(name, "embed heads") for name in ("image_k", "image_v"))
            self.image_k_norm = rms_norm(D, "heads", epsilon=EPSILON, rngs=rngs)

    def __call__(self, x, context, x_segment_ids, context_segment_ids, *, clips, rope=None, image=None):
        """x [B, N, D], context [B, M, D]; clips: in a row at most; image: as context, and its segments."""
        wide = spec("batch tokens heads")

        def heads(y, layout="batch tokens heads ."):
            # The reshape is a copy on a TPU: of what is rounded, or the compiler would round once more, after it.
            return split_heads(jax.lax.optimization_barrier(y.astype(self.dtype)), self.A, layout=layout)

        q = heads(self.q_norm(self.q(x, out_sharding=wide)))
        k = heads(self.k_norm(self.k(context, out_sharding=wide)))
        v = heads(self.v(context, out_sharding=wide))
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        y = attention(q, k, v, x_segment_ids, context_segment_ids, kernel=self.kernel, clips=clips)
        if image is not None:
            image, image_segment_ids = image
            # An image's tokens, an odd number, are whole on every chip.
            wide, layout = spec("batch . heads"), "batch . heads ."
            k = heads(self.image_k_norm(self.image_k(image, out_sharding=wide)), layout)
            v = heads(self.image_v(image, out_sharding=wide), layout)
            y += attention(q, k, v, x_segment_ids, image_segment_ids, kernel=self.kernel, clips=clips)
        return self.out(merge_heads(y), out_sharding=residual).astype(jnp.float32)


def select_modulation(table, one_hot):
    """For each patch the row of its level: table [B, T, D], one_hot [B, N, T] -> [B, N, D] float32, exact.

    A matrix product rather than a gather: its transpose is one too, where a gather's is a scatter. Of few levels
    it is a sum, which the compiler makes part of what reads it: [B, N, D] is never written to memory.
    """
    if table.shape[1] <= FEW_LEVELS:
        return _pick_of_few(table, one_hot)
    return jnp.einsum("bnt,btd->bnd", one_hot, table, precision="highest", out_sharding=residual)


def _sum_of_levels(table, one_hot):
    return sum(one_hot[:, :, t, None] * table[:, None, t] for t in range(table.shape[1]))


def _levels_backward(saved, dy):
    table, one_hot = saved
    if platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1:
        dtable = jnp.einsum("bnt,bnd->btd", one_hot, dy, precision="highest")  # 20 times as fast
    else:
        (dtable,) = jax.vjp(lambda table: _sum_of_levels(table, one_hot), table)[1](dy)
    return dtable, jnp.zeros_like(one_hot)  # levels are numbers: what they are never has a gradient


_pick_of_few = jax.custom_vjp(_sum_of_levels)
_pick_of_few.defvjp(lambda *saved: (_sum_of_levels(*saved), saved), _levels_backward)


def replicated_linear(layer, x):
    """A layer of x [B, T, D] over "few": so few rows that they move, and the weight stays, a part on each chip."""
    return jax.reshard(layer(x, out_sharding=spec("few . embed")), spec("few . ."))


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

    def __call__(self, x, modulation, one_hot, rope, segment_ids, text, text_segment_ids, image=None):
        """x [B, N, D]; modulation [B, T, 6, D] float32, one row for each level of one_hot [B, N, T].

        What comes out is of x's dtype: it is summed in float32, and rounded once.
        """
        x, dtype = x.astype(jnp.float32), x.dtype
        m = modulation + self.modulation[...]
        clips = max(modulation.shape[1] - 1, 1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            select_modulation(m[:, :, i], one_hot) for i in range(6)
        )
        h = self.self_attention_norm(x) * (1 + scale) + shift
        x = x + gate * self.self_attention(h, h, segment_ids, segment_ids, rope=rope, clips=clips)
        h = self.cross_attention_norm(x)
        x = x + self.cross_attention(h, text, segment_ids, text_segment_ids, image=image, clips=clips)
        h = self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift
        return (x + mlp_gate * self.mlp(h).astype(jnp.float32)).astype(dtype)


class ImageProjection(nnx.Module):
    """What an image encoder saw, [B, I, image_width] -> [B, I, D] float32."""

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
            # A row's clips have as many image tokens each, one after the other; what fills up the row has any.
            of_clip, I = self.positions[...], image.shape[1]
            image = image + jnp.tile(of_clip, (-(-I // len(of_clip)), 1))[:I]
        layout = spec("batch . .")
        h = jax.nn.gelu(self.up(self.norm_in(image), out_sharding=layout), approximate=False)
        return self.norm_out(self.down(h, out_sharding=layout))


class DiT(nnx.Module):
    """Velocity of noisy patches, given the noise level of each and a text for each clip.

    By its settings also given: latents beside the patches (Wan's image-to-video: which frames are given, and the
    given frames encoded), and what an image encoder saw. adapter_of: (rank, scale) of a block's layer by its name.
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
            # Zeros: a model that has learned without begins where it was.
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

    def __call__(
        self,
        patches,
        times,
        time_index,
        positions,
        segment_ids,
        text,
        text_segment_ids,
        *,
        condition=None,
        image=None,
        image_segment_ids=None,
    ):
        """Velocity (noise - data) of each patch.

        Args:
          patches: noisy patches, [B, N, P] float.
          times: the distinct noise levels of each row, in [0, 1], 0 = data, [B, T] float32; a row has at most
            T - 1 clips, or one.
          levels: which of its row's times a patch has, [B, N] int32.
          positions: (frame, row, column), [B, N, 3].
          segments: [B, N] int32; a patch attends to patches and text of its own segment.
          text: [B, S, E].
          text_segment_ids: [B, S] int32.
          condition: patches of what is given beside the noise, [B, N, P_c]; None if there are no such channels.
          image: of an image encoder, [B, I, image_width], and its segments, [B, I] int32; None if it is not taken.
        Returns: [B, N, P] float32.
        """
        D, T = self.settings.width, times.shape[1]
        B = len(text)
        patches, positions, text = (jax.reshard(a, residual) for a in (patches, positions, text))
        time_index, segment_ids, text_segment_ids = (
            jax.reshard(a, spec("batch tokens")) for a in (time_index, segment_ids, text_segment_ids)
        )
        times = jax.reshard(times, spec("few ."))
        e = sinusoid(times * TIME_SCALE, self.settings.frequencies)
        e = replicated_linear(self.time_out, jax.nn.silu(replicated_linear(self.time_in, e)))
        modulation = replicated_linear(self.time_modulation, jax.nn.silu(e))
        e, modulation = (jax.reshard(y, spec("batch . .")) for y in (e, modulation))
        modulation = modulation.reshape(B, T, 6, D)
        text = self.text_out(
            jax.nn.gelu(self.text_in(text, out_sharding=residual), approximate=True), out_sharding=residual
        )
        one_hot = jax.nn.one_hot(time_index, T, dtype=jnp.float32)
        rope = rope_cos_sin(rope_angles(positions, D // self.settings.heads, self.settings.rotary_base))
        x = self.patch_embedding(patches, out_sharding=residual).astype(jnp.float32)
        if condition is not None:
            condition = jax.reshard(condition, residual)
            x += self.condition_embedding(condition, out_sharding=residual).astype(jnp.float32)
        if image is not None:
            image = (
                self.image_in(jax.reshard(image, spec("batch . ."))),
                jax.reshard(image_segment_ids, spec("batch .")),
            )
        x = run_stack(
            self.blocks,
            x.astype(self.settings.dtype),  # what each layer keeps for the backward pass
            lambda block, x: block(x, modulation, one_hot, rope, segment_ids, text, text_segment_ids, image),
            remat=self.settings.remat,
            unroll=self.settings.unroll,
        )
        shift, scale = (select_modulation(e + self.head_modulation[i], one_hot) for i in range(2))
        x = self.head_norm(x.astype(jnp.float32)) * (1 + scale) + shift
        return self.head(x, out_sharding=residual).astype(jnp.float32)
