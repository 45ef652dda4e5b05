"""An image encoder in CLIP's form, a vision transformer; the defaults are ViT-H/14, which Wan 2.1 uses.

Source: Radford et al. 2021 (arXiv 2103.00020); Dosovitskiy et al. 2020 (arXiv 2010.11929).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax.config.schema import ImageSettings
from sora_jax.core.mesh import spec
from sora_jax.core.patches import patchify
from sora_jax.kernels.attention import attention, merge_heads, split_heads
from sora_jax.models.layers.linear import linear, normal_002
from sora_jax.models.layers.mlp import Mlp
from sora_jax.models.layers.norm import layer_norm
from sora_jax.models.layers.params import bind, sharded
from sora_jax.models.layers.remat import run_stack, stack

EPSILON = 1e-5


class ImageBlock(nnx.Module):
    """A block of a vision transformer, or of a text transformer with a causal `bias`.

    Args:
      settings: anything with width, heads, mlp and dtype.
    """

    def __init__(self, settings, *, epsilon=EPSILON, mlp=Mlp, rngs):
        E, dtype = settings.width, jnp.dtype(settings.dtype)
        self.A = settings.heads
        self.attention_norm = layer_norm(E, epsilon=epsilon, affine=True, rngs=rngs)
        self.q, self.k, self.v = (linear(E, E, "embed heads", dtype=dtype, rngs=rngs) for _ in range(3))
        self.out = linear(E, E, "heads embed", dtype=dtype, rngs=rngs)
        self.mlp_norm = layer_norm(E, epsilon=epsilon, affine=True, rngs=rngs)
        self.mlp = mlp(E, settings.mlp, dtype=dtype, approximate=False, rngs=rngs)

    def __call__(self, x, bias=None):  # [B, I, E] float32
        h = self.attention_norm(x)
        q, k, v = (split_heads(f(h, out_sharding=spec("batch . heads")), self.A) for f in (self.q, self.k, self.v))
        one = jnp.ones(x.shape[:2], jnp.int32, out_sharding=spec("batch ."))
        y = merge_heads(attention(q, k, v, one, one, bias=bias))
        x = x + self.out(y, out_sharding=spec("batch tokens .")).astype(jnp.float32)
        return x + self.mlp(self.mlp_norm(x)).astype(jnp.float32)


class ImageEncoder(nnx.Module):
    """Images to one embedding of the whole and one of each patch."""

    def __init__(self, settings: ImageSettings, *, mlp=Mlp, rngs):
        E, dtype = settings.width, jnp.dtype(settings.dtype)
        count = (settings.size // settings.patch) ** 2
        self.settings = settings
        small = sharded(normal_002, ". .")
        self.patch_embedding = linear(3 * settings.patch**2, E, ". embed", dtype=dtype, use_bias=False, rngs=rngs)
        self.whole = nnx.Param(sharded(normal_002, ".")(rngs.params(), (E,)))
        self.positions = nnx.Param(small(rngs.params(), (1 + count, E)))
        self.norm = layer_norm(E, epsilon=EPSILON, affine=True, rngs=rngs)
        self.blocks = stack(lambda rngs: ImageBlock(settings, mlp=mlp, rngs=rngs), settings.layers, rngs=rngs)

    def __call__(self, images):
        """Embeddings [B, 1 + patches, E] float32 of normalised images [B, size, size, 3] float."""
        images = jax.reshard(images, spec("batch . . ."))
        side = self.settings.patch
        layout = spec("batch . .")
        x = on_own_rows(lambda x: patchify(x[:, None], (1, side, side)), images)
        x = self.patch_embedding(x, out_sharding=layout).astype(jnp.float32)
        whole = jnp.broadcast_to(self.whole[...], (len(x), 1, self.settings.width), out_sharding=layout)
        x = self.norm(jnp.concatenate([whole, x], axis=1) + self.positions[...])
        return run_stack(self.blocks, x, lambda block, x: block(x), remat="none")


def on_own_rows(function, x):
    """function(x [B, ...]) -> [B, ...], which has no parameters, on each device's rows of the batch."""
    return jax.shard_map(function, in_specs=spec("batch"), out_specs=spec("batch"))(x)


def see(params: dict, settings: ImageSettings, images) -> np.ndarray:
    """Features of normalised images [n, size, size, 3], one image after the other, [n * tokens, E].

    The current mesh should be one device: the odd number of an image's tokens can't be split.
    """
    return np.asarray(_see(settings, params, images)).reshape(-1, settings.width)


@functools.partial(jax.jit, static_argnums=0)
def _see(settings, params, images):
    return bind(ImageEncoder, settings, params)(images)
