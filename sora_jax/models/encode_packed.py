"""Packed sequences whose clips are still pixels, encoded inside a compiled program by a frozen autoencoder."""

import functools

import jax
import jax.numpy as jnp

from sora_jax.config.schema import AutoencoderSettings
from sora_jax.core.mesh import over_gloo, place, spec
from sora_jax.core.patches import PatchBatch, patchify
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.autoencoder.pixels import frame_axes
from sora_jax.models.layers.params import bind

CHUNK = 4  # latent frames at a time


def place_packed(batch: PatchBatch) -> PatchBatch:
    """`mesh.place` of packed sequences: tokens over their axes, pixels over "batch" alone."""
    placed = place(batch.replace(pixels=None), "batch tokens")
    return placed if batch.pixels is None else placed.replace(pixels=place(batch.pixels, "batch"))


def encode_packed(
    settings: AutoencoderSettings, params: dict, batch: PatchBatch, patch: tuple[int, int, int]
) -> PatchBatch:
    """The batch with patches instead of pixels, as if `prepare` had encoded the clips.

    It encodes one clip of each sequence at a time, in chunks: memory does not grow with their number or length.

    Args:
      batch: with pixels; clip i of a sequence is its segment i + 1, one after the other.
      patch: the transformer's.
    Returns: with patches [B, N, P] bfloat16, 0 for padding.
    Raises: InputError for a clip that is no multiple of the autoencoder's strides or the patch.
    """
    model = bind(Autoencoder, settings, params)
    B, _, _, H, W, _ = batch.pixels.shape
    N = batch.segment_ids.shape[1]
    axes = ". ." if over_gloo() else frame_axes(H // settings.spatial_stride, W // settings.spatial_stride)
    layout = spec(f"batch . {axes} .")

    # Each chip patchifies its own clips: the layout of a global reshape would have to be spelled out.
    cut = jax.shard_map(
        functools.partial(patchify, patch=patch), in_specs=spec("batch . . . ."), out_specs=spec("batch . .")
    )

    def encoded(clip):  # [B, F, H, W, 3] -> [B, n, P]
        video = jax.reshard(clip, layout).astype(jnp.float32) / 127.5 - 1
        mean, _ = model.encode(video, chunk=CHUNK)
        return cut(jax.reshard(model.to_latents(mean), spec("batch . . . .")).astype(jnp.bfloat16))

    patches = jax.lax.map(encoded, jnp.moveaxis(batch.pixels, 1, 0))
    shape = (B, -1, patches.shape[-1])
    patches = jnp.reshape(jnp.moveaxis(patches, 0, 1), shape, out_sharding=spec("batch . ."))
    patches = jnp.pad(patches, ((0, 0), (0, N - patches.shape[1]), (0, 0)))
    patches = jax.reshard(patches, spec("batch tokens ."))
    return batch.replace(patches=jnp.where(batch.segment_ids[..., None] > 0, patches, 0), pixels=None)
