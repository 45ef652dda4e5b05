"""A published UMT5 encoder, read as it is from the folder in which transformers keeps it."""

from sora_jax.models.text import TextEncoder
from sora_jax.settings import TextSettings
from sora_jax.weights.folders import tensors_in
from sora_jax.weights.tables import load_foreign
from sora_jax.weights.wan import TEXT_ALIASES, text_table


def load_text_encoder(settings: TextSettings) -> dict:
    """Parameters of the TextEncoder in the folder `settings.weights`, on the current mesh, in its compute type.

    Raises: InputError if it is not there, or no UMT5 of these sizes; names the tensor.
    """
    return load_foreign(
        tensors_in(settings.weights),
        text_table(),
        TextEncoder,
        settings,
        where=settings.weights,
        unused=TEXT_ALIASES,
        dtype=settings.dtype,
    )
