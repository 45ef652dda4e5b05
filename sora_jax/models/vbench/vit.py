"""The vision transformers that VBench takes besides CLIP: DINO's, and the two towers of ViCLIP.

Source: Caron et al. 2021 (arXiv 2104.14294); Wang et al. 2023 (arXiv 2307.06942).
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from sora_jax.core.mesh import spec
from sora_jax.core.patches import patchify
from sora_jax.models.image_encoder import EPSILON, ImageBlock, on_own_rows
from sora_jax.models.layers.linear import linear, normal_002
from sora_jax.models.layers.norm import layer_norm
from sora_jax.models.layers.params import sharded
from sora_jax.models.layers.remat import run_stack, stack
from sora_jax.models.metric_backbones import QuickMlp, TextTower, unit
from sora_jax.models.vbench.resize import resize


@dataclasses.dataclass(frozen=True)
class DinoSettings:
    """Sizes of a DINO encoder; the defaults are those of ViT-B/16."""

    width: int = 768
    heads: int = 12
    mlp: int = 3072
    layers: int = 12
    patch: int = 16
    grid: int = 14  # rows and columns of the positions that it was trained with
    epsilon: float = 1e-6
    dtype: str = "float32"


class Dino(nnx.Module):
    """Pictures of any size to one vector each."""

    def __init__(self, settings: DinoSettings, *, rngs):
        E, dtype = settings.width, jnp.dtype(settings.dtype)
        self.settings = settings
        self.patch_embedding = linear(3 * settings.patch**2, E, ". embed", dtype=dtype, rngs=rngs)
        self.whole = nnx.Param(sharded(normal_002, ".")(rngs.params(), (E,)))
        self.positions = nnx.Param(sharded(normal_002, ". .")(rngs.params(), (1 + settings.grid**2, E)))
        self.blocks = stack(
            lambda rngs: ImageBlock(settings, epsilon=settings.epsilon, rngs=rngs), settings.layers, rngs=rngs
        )
        self.norm = layer_norm(E, epsilon=settings.epsilon, affine=True, rngs=rngs)

    def __call__(self, pictures):
        """Normalised pictures [B, H, W, 3] -> [B, E] float32; an odd rest of rows or columns is left out."""
        side, layout = self.settings.patch, spec("batch . .")
        rows, columns = (size // side for size in pictures.shape[1:3])
        pictures = pictures[:, None, : rows * side, : columns * side]
        x = on_own_rows(lambda x: patchify(x, (1, side, side)), pictures)
        x = self.patch_embedding(x, out_sharding=layout).astype(jnp.float32)
        whole = jnp.broadcast_to(self.whole[...], (len(x), 1, self.settings.width), out_sharding=layout)
        x = jnp.concatenate([whole, x], axis=1) + self.positions_of(rows, columns)
        x = run_stack(self.blocks, x, lambda block, x: block(x), remat="none")
        return self.norm(x[:, 0])

    def positions_of(self, rows: int, columns: int):
        """Positions of so many patches, [1 + rows * columns, E], as the published code interpolates them."""
        grid, positions = self.settings.grid, self.positions[...]
        if (rows, columns) == (grid, grid):
            return positions
        square = positions[1:].reshape(1, grid, grid, -1)
        # The published code adds 0.1 against rounding; its interpolation then takes this for the scale.
        scales = ((rows + 0.1) / grid, (columns + 0.1) / grid)
        made = resize(square, (rows, columns), "bicubic", scales)
        return jnp.concatenate([positions[:1], made.reshape(rows * columns, -1)])


@dataclasses.dataclass(frozen=True)
class TowerSettings:
    width: int
    heads: int
    mlp: int
    layers: int
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class TextTowerSettings:
    """Sizes of ViCLIP's text tower; the defaults are those of ViT-L/14."""

    width: int = 768
    heads: int = 12
    mlp: int = 3072
    layers: int = 12
    vocabulary: int = 49408
    tokens: int = 32
    shared: int = 768  # width of the common embedding space
    quick: bool = True
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class ViclipSettings:
    """Sizes of a ViCLIP model; the defaults are those of ViT-L/14."""

    video: TowerSettings = TowerSettings(1024, 16, 4096, 24)
    text: TextTowerSettings = TextTowerSettings()
    frames: int = 8
    patch: int = 14
    size: int = 224


class Viclip(nnx.Module):
    """Videos and texts to unit vectors of one space."""

    def __init__(self, settings: ViclipSettings, *, rngs):
        self.settings = settings
        self.video = VideoTower(settings, rngs=rngs)
        self.text = TextTower(settings.text, rngs=rngs)

    def encode_videos(self, videos):
        """Normalised videos, [B, frames, size, size, 3] float -> unit vectors, [B, shared] float32."""
        return unit(self.video(videos))

    def encode_texts(self, tokens, ends):
        """Texts [B, S] int32 and the index of each one's end token, [B] -> unit vectors, [B, shared] float32."""
        return unit(self.text(tokens, ends))


class VideoTower(nnx.Module):
    """Videos to one vector each."""

    def __init__(self, settings: ViclipSettings, *, rngs):
        tower, dtype = settings.video, jnp.dtype(settings.video.dtype)
        E, count = tower.width, (settings.size // settings.patch) ** 2
        self.settings = settings
        small = sharded(normal_002, ". .")
        self.patch_embedding = linear(3 * settings.patch**2, E, ". embed", dtype=dtype, use_bias=False, rngs=rngs)
        self.whole = nnx.Param(sharded(normal_002, ".")(rngs.params(), (E,)))
        self.positions = nnx.Param(small(rngs.params(), (1 + count, E)))
        self.times = nnx.Param(small(rngs.params(), (settings.frames, E)))
        self.first_norm = layer_norm(E, epsilon=EPSILON, affine=True, rngs=rngs)
        self.blocks = stack(lambda rngs: ImageBlock(tower, mlp=QuickMlp, rngs=rngs), tower.layers, rngs=rngs)
        self.norm = layer_norm(E, epsilon=EPSILON, affine=True, rngs=rngs)
        self.out = linear(E, settings.text.shared, "embed .", dtype=dtype, use_bias=False, rngs=rngs)

    def __call__(self, videos):
        side, layout, E = self.settings.patch, spec("batch . ."), self.settings.video.width
        x = on_own_rows(
            lambda x: patchify(x, (1, side, side)), videos
        )  # patches of a frame after those of the one before
        x = self.patch_embedding(x, out_sharding=layout).astype(jnp.float32)
        positions = self.positions[...]
        x = x + (self.times[...][:, None] + positions[1:]).reshape(-1, E)
        whole = jnp.broadcast_to(self.whole[...] + positions[0], (len(x), 1, E), out_sharding=layout)
        x = self.first_norm(jnp.concatenate([whole, x], axis=1))
        x = run_stack(self.blocks, x, lambda block, x: block(x), remat="none")
        return self.out(self.norm(x[:, :1]), out_sharding=layout)
