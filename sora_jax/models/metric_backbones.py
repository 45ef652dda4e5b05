"""Metric backbones: CLIP's two towers, and VideoMAE's vision transformer.

Source: Radford et al. 2021 (arXiv 2103.00020); Tong et al. 2022 (arXiv 2203.12602), Wang et al. 2023 (2303.16727).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax.config.schema import ImageSettings
from sora_jax.core.mesh import spec
from sora_jax.core.patches import patchify
from sora_jax.models.image_encoder import EPSILON, ImageBlock, ImageEncoder, on_own_rows
from sora_jax.models.layers.linear import linear, normal_002
from sora_jax.models.layers.mlp import Mlp
from sora_jax.models.layers.norm import layer_norm
from sora_jax.models.layers.params import sharded
from sora_jax.models.layers.remat import run_stack, stack


class QuickMlp(Mlp):
    """Linear, x sigmoid(1.702 x), linear, as in OpenAI's CLIP."""

    def __call__(self, x):
        h = self.up(x, out_sharding=spec("batch tokens mlp"))
        return self.down(h * jax.nn.sigmoid(1.702 * h), out_sharding=spec("batch tokens ."))


VIT_B_32 = ImageSettings(768, 12, 3072, 12, patch=32, size=224, dtype="float32")


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """Sizes of a CLIP model; the defaults are those of ViT-B/32."""

    image: ImageSettings = VIT_B_32
    width: int = 512  # of the text tower, as heads, mlp and layers
    heads: int = 8
    mlp: int = 2048
    layers: int = 12
    vocabulary: int = 49408
    tokens: int = 77
    shared: int = 512  # width of the common embedding space
    quick: bool = True
    dtype: str = "float32"


class TextTower(nnx.Module):
    """Texts to one vector each, that of their end.

    Args:
      settings: anything with width, heads, mlp, layers, vocabulary, tokens, shared, quick and dtype.
    """

    def __init__(self, settings, *, rngs):
        E, mlp = settings.width, QuickMlp if settings.quick else Mlp
        self.settings = settings
        small = sharded(normal_002, ". .")
        self.embedding = nnx.Param(small(rngs.params(), (settings.vocabulary, E)))
        self.positions = nnx.Param(small(rngs.params(), (settings.tokens, E)))
        self.blocks = stack(lambda rngs: ImageBlock(settings, mlp=mlp, rngs=rngs), settings.layers, rngs=rngs)
        self.norm = layer_norm(E, epsilon=EPSILON, affine=True, rngs=rngs)
        self.out = linear(
            E, settings.shared, "embed .", dtype=jnp.dtype(settings.dtype), use_bias=False, rngs=rngs
        )

    def __call__(self, tokens, ends):
        """[B, 1, shared] of texts.

        Args:
          tokens: [B, S] int32; tokens after the end have no effect.
          ends: index of each text's end token, [B] int32.
        """
        S, layout = tokens.shape[1], spec("batch . .")
        later = jnp.triu(jnp.ones((S, S), bool), k=1)
        bias = jnp.broadcast_to(jnp.where(later, -jnp.inf, 0.0), (self.settings.heads, S, S))
        x = self.embedding[...].at[tokens].get(out_sharding=layout) + self.positions[:S]
        x = run_stack(self.blocks, x, lambda block, x: block(x, bias), remat="none")
        end = jnp.take_along_axis(x, ends[:, None, None], axis=1)
        return self.out(self.norm(end), out_sharding=layout)


class Clip(nnx.Module):
    """Images and texts to unit vectors of one space."""

    def __init__(self, settings: ClipSettings, *, rngs):
        dtype, mlp = jnp.dtype(settings.dtype), QuickMlp if settings.quick else Mlp
        self.settings = settings
        self.image = ImageEncoder(settings.image, mlp=mlp, rngs=rngs)
        self.image_norm = layer_norm(settings.image.width, epsilon=EPSILON, affine=True, rngs=rngs)
        self.image_out = linear(
            settings.image.width, settings.shared, "embed .", dtype=dtype, use_bias=False, rngs=rngs
        )
        self.text = TextTower(settings, rngs=rngs)

    def encode_images(self, images):
        """Normalised images, [B, size, size, 3] float -> unit vectors, [B, shared] float32."""
        whole = self.image_norm(self.image(images)[:, :1])
        return unit(self.image_out(whole, out_sharding=spec("batch . .")))

    def encode_texts(self, tokens, ends):
        """Texts -> unit vectors, [B, shared] float32; arguments as of `TextTower`."""
        return unit(self.text(tokens, ends))


def unit(x):
    """x [B, 1, E] as unit vectors, [B, E] float32."""
    x = x[:, 0].astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class VideoEncoderSettings:
    """Sizes of a VideoMAE encoder; the defaults are those of ViT-g/14, with which FVD has least content bias."""

    width: int = 1408
    heads: int = 16
    mlp: int = 6144
    layers: int = 40
    patch: tuple[int, int] = (2, 14)  # frames, and side in pixels
    frames: int = 16
    size: int = 224
    epsilon: float = 1e-6
    last_epsilon: float = 1e-6
    dtype: str = "float32"


class VideoEncoder(nnx.Module):
    """Videos to one vector each: the mean over all patches, normalised."""

    def __init__(self, settings: VideoEncoderSettings, *, rngs):
        E, (frames, side) = settings.width, settings.patch
        self.settings = settings
        self.patch_embedding = linear(
            3 * frames * side**2, E, ". embed", dtype=jnp.dtype(settings.dtype), rngs=rngs
        )
        self.blocks = stack(
            lambda rngs: ImageBlock(settings, epsilon=settings.epsilon, rngs=rngs), settings.layers, rngs=rngs
        )
        self.norm = layer_norm(E, epsilon=settings.last_epsilon, affine=True, rngs=rngs)

    def __call__(self, videos):
        """[B, frames, size, size, 3] float -> [B, E] float32."""
        frames, side = self.settings.patch
        videos = jax.reshard(videos, spec("batch . . . ."))
        x = on_own_rows(lambda x: patchify(x, (frames, side, side)), videos)
        x = self.patch_embedding(x, out_sharding=spec("batch . .")).astype(jnp.float32)
        x = x + sinusoid_table(x.shape[1], self.settings.width)
        x = run_stack(self.blocks, x, lambda block, x: block(x), remat="none")
        return self.norm(jnp.mean(x, axis=1))


def sinusoid_table(N: int, width: int) -> np.ndarray:
    """VideoMAE's positions, sines in the even columns, cosines in the odd ones, [N, width] float32."""
    angles = np.arange(N)[:, None] / 10000 ** (2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)
