"""MUSIQ: the quality of a picture of any size.

Source: Ke et al. 2021 (arXiv 2108.05997). Sizes and kernels are those of the PyTorch weights that VBench uses.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax.core.mesh import spec
from sora_jax.core.patches import patchify
from sora_jax.models.image_encoder import ImageBlock, on_own_rows
from sora_jax.models.layers.linear import linear, normal_002
from sora_jax.models.layers.norm import layer_norm
from sora_jax.models.layers.params import sharded
from sora_jax.models.layers.remat import run_stack, stack
from sora_jax.models.vbench.conv import LAYOUT
from sora_jax.models.vbench.resize import resize

PATCH = 32
LONGER_SIDES = (224, 384)  # of the two smaller copies of a picture; the third is the picture itself
GRID = 10  # positions are hashed to so many rows and columns
GROUPS = 32
STEM = 64  # channels of the first convolution
EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class MusiqSettings:
    width: int = 384
    heads: int = 6
    mlp: int = 1152
    layers: int = 14
    dtype: str = "float32"


class Musiq(nnx.Module):
    """Pictures to a score in about 0 ... 100."""

    def __init__(self, settings: MusiqSettings, *, rngs):
        E = settings.width
        self.settings = settings
        small = functools.partial(sharded, normal_002)
        self.conv_root = nnx.Param(small(". . . .")(rngs.params(), (7, 7, 3, STEM)))
        self.gn_root = GroupNorm(STEM, EPSILON)
        self.block1 = StandardizedBottleneck(STEM, 4 * STEM, rngs=rngs)
        self.embedding = linear(
            4 * STEM * (PATCH // 4) ** 2, E, ". embed", dtype=jnp.dtype(settings.dtype), rngs=rngs
        )
        self.positions = nnx.Param(small(". .")(rngs.params(), (GRID**2, E)))
        self.scales = nnx.Param(small(". .")(rngs.params(), (len(LONGER_SIDES) + 1, E)))
        self.whole = nnx.Param(small(".")(rngs.params(), (E,)))
        self.blocks = stack(
            lambda rngs: ImageBlock(settings, epsilon=EPSILON, rngs=rngs), settings.layers, rngs=rngs
        )
        self.norm = layer_norm(E, epsilon=EPSILON, affine=True, rngs=rngs)
        self.head = linear(E, 1, "embed .", dtype=jnp.dtype(settings.dtype), rngs=rngs)

    def __call__(self, pictures):
        """[B, H, W, 3] in [0, 1] -> [B] float32."""
        places, scales = multiscale_places(*pictures.shape[1:3])
        patches = on_own_rows(multiscale_patches, 2 * pictures - 1)
        B, N = patches.shape[:2]
        x = jnp.reshape(patches, (B * N, PATCH, PATCH, 3), out_sharding=spec("batch . . ."))
        x = _max_pool(jax.nn.relu(self.gn_root(standardized_conv(x, self.conv_root[...], stride=2))))
        x = jnp.reshape(self.block1(x), (B, N, -1), out_sharding=spec("batch . ."))
        x = self.embedding(x, out_sharding=spec("batch . .")).astype(jnp.float32)
        x = x + (self.positions[...][places] + self.scales[...][scales])
        layout = spec("batch . .")
        whole = jnp.broadcast_to(self.whole[...], (B, 1, self.settings.width), out_sharding=layout)
        x = jnp.concatenate([whole, x], axis=1)
        x = run_stack(self.blocks, x, lambda block, x: block(x), remat="none")
        return self.head(self.norm(x[:, :1]), out_sharding=layout)[:, 0, 0]


class StandardizedBottleneck(nnx.Module):
    """Three convolutions beside a fourth one, all with standardized weights."""

    def __init__(self, C_in, C_out, *, rngs):
        kernels = {"conv1": (1, C_in), "conv2": (3, C_in), "conv3": (1, C_out), "conv_proj": (1, C_out)}
        for name, (side, C) in kernels.items():
            kernel = sharded(normal_002, ". . . .")(rngs.params(), (side, side, C_in, C))
            setattr(self, name, nnx.Param(kernel))
        self.gn1, self.gn2 = GroupNorm(C_in, 1e-4), GroupNorm(C_in, 1e-4)
        self.gn3, self.gn_proj = GroupNorm(C_out, 1e-4), GroupNorm(C_out, 1e-4)

    def __call__(self, x):
        y = jax.nn.relu(self.gn1(standardized_conv(x, self.conv1[...])))
        y = jax.nn.relu(self.gn2(standardized_conv(y, self.conv2[...])))
        y = self.gn3(standardized_conv(y, self.conv3[...]))
        return jax.nn.relu(y + self.gn_proj(standardized_conv(x, self.conv_proj[...])))


class GroupNorm(nnx.Module):
    """GROUPS groups of channels of each picture by their mean and deviation."""

    def __init__(self, C, epsilon):
        self.epsilon = epsilon
        self.scale, self.bias = nnx.Param(jnp.ones((C,))), nnx.Param(jnp.zeros((C,)))

    def __call__(self, x):
        grouped = x.reshape(*x.shape[:3], GROUPS, -1)
        grouped = grouped - jnp.mean(grouped, axis=(1, 2, 4), keepdims=True)
        square = jnp.mean(jnp.square(grouped), axis=(1, 2, 4), keepdims=True)
        return (grouped * jax.lax.rsqrt(square + self.epsilon)).reshape(x.shape) * self.scale[...] + self.bias[...]


def standardized_conv(x, kernel, stride: int = 1):
    """A convolution by weights of mean 0 and deviation 1 in each output channel, padded as TensorFlow does."""
    kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2))
    kernel = kernel / (jnp.std(kernel, axis=(0, 1, 2), ddof=1) + 1e-5)
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUT)


def multiscale_patches(pictures):
    """Pictures [B, H, W, 3] at three sizes in patches [B, N, PATCH, PATCH, 3], the borders filled up with 0."""
    patches = []
    for size in _sizes(*pictures.shape[1:3]):
        x = resize(pictures, size, "bicubic")
        missing = [-side % PATCH for side in size]
        x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)))
        x = patchify(x[:, None], (1, PATCH, PATCH))
        patches.append(x.reshape(*x.shape[:2], PATCH, PATCH, 3))
    return jnp.concatenate(patches, axis=1)


def multiscale_places(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The hashed place of each patch of `multiscale_patches`, and its scale, [N] each."""
    places, scales = [], []
    for number, size in enumerate(_sizes(height, width)):
        rows, columns = (-(-side // PATCH) for side in size)
        places.append((GRID * _hashed(rows)[:, None] + _hashed(columns)).ravel())
        scales.append(np.full(rows * columns, number))
    return np.concatenate(places), np.concatenate(scales)


def _sizes(height: int, width: int) -> list[tuple[int, int]]:
    """The three sizes of a picture; the last is its own."""
    ratios = [side / max(height, width) for side in LONGER_SIDES]
    return [*((round(height * ratio), round(width * ratio)) for ratio in ratios), (height, width)]


def _hashed(count: int) -> np.ndarray:
    """The row or column of the grid for each of `count` patches; float32 as in torch, which decides at borders."""
    place = np.floor(np.arange(count, dtype=np.float32) * (np.float32(GRID) / np.float32(count)))
    return np.minimum(place.astype(int), GRID - 1)


def _max_pool(x):
    """The maximum of 3 x 3 at every second pixel, of values that are not negative; padded as TensorFlow does."""
    H, W = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    shifted = [x[:, i : i + H - 1 : 2, j : j + W - 1 : 2] for i in range(3) for j in range(3)]
    return functools.reduce(jnp.maximum, shifted)
