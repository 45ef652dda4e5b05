"""The generative model: a diffusion transformer, and a text encoder that is trained with it or frozen."""

import jax.numpy as jnp
from flax import nnx, traverse_util

from sora_jax.config.schema import Settings
from sora_jax.diffusion.flow import times_at, velocity_to
from sora_jax.models.dit import DiT
from sora_jax.models.layers.params import abstract_params, init_params
from sora_jax.models.text_encoder import TextEncoder


def init_trained(settings: Settings, key) -> dict:
    """Fresh parameters of a VideoModel, without frozen ones, which are read from files."""
    return _trained(init_params(VideoModel, settings, key), settings)


def abstract_trained(settings: Settings) -> dict:
    """Shapes, dtypes and shardings of `init_trained` on the current mesh, without making an array."""
    return _trained(abstract_params(VideoModel, settings), settings)


def _trained(params: dict, settings: Settings) -> dict:
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: x for path, x in flat.items() if is_trained(path, settings)})


def is_trained(path: tuple[str, ...], settings: Settings) -> bool:
    """Whether training changes the parameter: adapters if there are any, else all but a frozen text encoder."""
    if settings.lora.rank:
        return path[-1].startswith("lora_")
    return path[0] != "text_encoder" or not settings.text.weights


def join(trained: dict, frozen: dict) -> dict:
    """All parameters, from the trained and the frozen ones."""
    parts = (traverse_util.flatten_dict(part) for part in (frozen, trained))
    return traverse_util.unflatten_dict({path: x for part in parts for path, x in part.items()})


class Denoiser(nnx.Module):
    """Velocity of packed noisy clips, given the embeddings of their captions."""

    def __init__(self, settings: Settings, *, rngs):
        self.predicts = settings.transformer.predicts
        self.transformer = DiT(settings.transformer, adapter_of=settings.lora.of, rngs=rngs)

    def embed_text(self, batch):
        """The batch with its embedded text, [B, S, E], in float32."""
        return batch.replace(text=batch.text.astype(jnp.float32))

    def velocity(self, batch, patches, times, time_index):
        """Velocity of `patches`, which the batch describes.

        Args:
          batch: PatchBatch with text embedded; its own patches are not read.
          patches: noisy, [B, N, P].
          times, time_index: as DiT takes them, [B, T] float32 and [B, N] int32.
        Returns: [B, N, P] float32.
        """
        out = self.transformer(batch, patches, times, time_index)
        return out if self.predicts == "velocity" else velocity_to(out, patches, times_at(times, time_index))


class VideoModel(Denoiser):
    """Velocity of packed noisy clips, given their captions as tokens."""

    def __init__(self, settings: Settings, *, rngs):
        self.text_encoder = TextEncoder(settings.text, rngs=rngs)
        super().__init__(settings, rngs=rngs)

    def embed_text(self, batch):
        """The batch with embeddings, [B, S, E] float32, instead of tokens."""
        return batch.replace(text=self.text_encoder(batch.text, batch.text_segment_ids))


def trained_model(settings: Settings) -> type[Denoiser]:
    """The module that a training step runs; with precomputed embeddings it has no text encoder."""
    return Denoiser if settings.data.embeddings else VideoModel
