"""The generative model: a text encoder and a diffusion transformer, trained together."""

from flax import nnx

from sora_jax.models.dit import DiT
from sora_jax.models.module import init_params
from sora_jax.models.text import TextEncoder
from sora_jax.settings import Settings


def init_trained(settings: Settings, key) -> dict:
    """Fresh parameters of a VideoModel but for those that are read from files and stay as they are."""
    params = init_params(VideoModel, settings, key)
    return {name: part for name, part in params.items() if name != "text_encoder" or not settings.text.weights}


class VideoModel(nnx.Module):
    """Velocity of packed noisy clips, given their captions as tokens."""

    def __init__(self, settings: Settings, *, rngs):
        self.text_encoder = TextEncoder(settings.text, rngs=rngs)
        self.transformer = DiT(settings.transformer, rngs=rngs)

    def embed_text(self, batch):
        """The batch with embeddings, [B, S, E] float32, in the place of its tokens."""
        return batch.replace(text=self.text_encoder(batch.text, batch.text_segments))

    def velocity(self, batch, patches, times, levels):
        """Velocity of `patches`, which lie and are described as the batch (with embedded text) says.

        Args:
          batch: PatchBatch with text embedded; its own patches are not read.
          patches: noisy, [B, N, P].
          times, levels: as DiT takes them, [B, T] float32 and [B, N] int32.
        Returns: [B, N, P] float32.
        """
        return self.transformer(
            patches, times, levels, batch.positions, batch.segments, batch.text, batch.text_segments
        )
