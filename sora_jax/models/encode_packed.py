"""Packed sequences whose clips are still pixels, encoded inside a compiled program by a frozen autoencoder."""

import functools
import math

import jax
import jax.numpy as jnp

from sora_jax.config.schema import AutoencoderSettings
from sora_jax.core.mesh import over_gloo, place, spec
from sora_jax.core.patches import PatchBatch, patchify
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.autoencoder.pixels import frame_axes
from sora_jax.models.layers.params import bind

CHUNK = 4  # latent frames at a time
WHOLE = ("pixels", "low", "trust")  # fields of a batch that hold whole clips


def place_packed(batch: PatchBatch) -> PatchBatch:
    """`mesh.place` of packed sequences: tokens over their axes, what belongs to whole clips over "batch" alone."""
    whole = {name: getattr(batch, name) for name in WHOLE}
    placed = place(batch.replace(**dict.fromkeys(WHOLE)), "batch tokens")
    return placed.replace(**{name: None if x is None else place(x, "batch") for name, x in whole.items()})


def encode_packed(
    settings: AutoencoderSettings, params: dict, batch: PatchBatch, patch: tuple[int, int, int]
) -> PatchBatch:
    """The batch with patches instead of pixels, as if `prepare` had encoded the clips.

    It encodes one clip of each sequence at a time, in chunks: memory does not grow with their number or length.

    Args:
      batch: with pixels; clip i of a sequence is its segment i + 1, one after the other.
      patch: the transformer's.
    Returns: with patches [B, N, P] bfloat16, 0 for padding. Of a refiner's pairs, `condition` is the patches of
      `low`, and `trust` is that of each patch's frames, [B, N, stride] float32.
    Raises: InputError for a clip that is no multiple of the autoencoder's strides or the patch.
    """
    N = batch.segment_ids.shape[1]

    def filled(clips):  # [k, B, n, P] -> [B, N, P]
        rows = jnp.moveaxis(clips, 0, 1)
        rows = jnp.reshape(rows, (len(rows), -1, rows.shape[-1]), out_sharding=spec("batch . ."))
        rows = jax.reshard(jnp.pad(rows, ((0, 0), (0, N - rows.shape[1]), (0, 0))), spec("batch tokens ."))
        return jnp.where(batch.segment_ids[..., None] > 0, rows, 0)

    made = batch.replace(patches=filled(_encode(settings, params, batch.pixels, patch)), pixels=None)
    if batch.low is None:
        return made
    trust = trust_of_latents(batch.trust, settings.temporal_stride)[:, :, :: patch[0]]  # [B, k, f, stride]
    cells = math.prod(batch.low.shape[3:5]) // (settings.spatial_stride**2 * math.prod(patch[1:]))
    trust = jnp.moveaxis(jnp.repeat(trust, cells, axis=2, total_repeat_length=trust.shape[2] * cells), 1, 0)
    condition = filled(_encode(settings, params, batch.low, patch))
    return made.replace(condition=condition, trust=filled(trust), low=None)


def trust_of_latents(trust, stride: int):
    """The trust in the frames of each latent frame, [..., F] -> [..., f, stride]; the first one's is repeated."""
    repeated = jnp.concatenate([trust[..., :1]] * (stride - 1) + [trust], axis=-1)
    return jnp.reshape(repeated, (*trust.shape[:-1], -1, stride))


def _encode(settings, params, pixels, patch):
    """Patches of clips, [B, k, F, H, W, 3] uint8 -> [k, B, n, P] bfloat16."""
    model = bind(Autoencoder, settings, params)
    *_, H, W, _ = pixels.shape
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

    return jax.lax.map(encoded, jnp.moveaxis(pixels, 1, 0))
