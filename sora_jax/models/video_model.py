"""The generative model: a text encoder and a diffusion transformer, trained together."""

from flax import nnx

from sora_jax.models.dit import DiT
from sora_jax.models.text import TextEncoder
from sora_jax.settings import Settings


class VideoModel(nnx.Module):
    """Velocity of packed noisy clips, given their captions as tokens."""

    def __init__(self, settings: Settings, *, rngs):
        self.text_encoder = TextEncoder(settings.text, rngs=rngs)
        self.transformer = DiT(settings.transformer, rngs=rngs)

    def embed(self, tokens, segments):
        """Tokens [B, S] int32 with their segments -> embeddings [B, S, E] float32."""
        return self.text_encoder(tokens, segments)
