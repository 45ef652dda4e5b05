"""Parameters that belong to the model and that no training changes, read from where they are published."""

from sora_jax.models.text import TextEncoder
from sora_jax.settings import Settings
from sora_jax.weights.folders import open_folder
from sora_jax.weights.tables import load_foreign
from sora_jax.weights.wan import TEXT_ALIASES, text_table


def load_frozen(settings: Settings) -> dict:
    """{"text_encoder": parameters} if `text.weights` names a folder of transformers' UMT5, else {}.

    On the current mesh, in the encoder's compute type, each process reading what its chips hold.
    Raises: InputError if it is not there, or no UMT5 of these sizes; names the tensor.
    """
    text = settings.text
    if not text.weights:
        return {}
    with open_folder(text.weights) as tensors:
        params = load_foreign(
            tensors,
            text_table(),
            TextEncoder,
            text,
            where=text.weights,
            unused=TEXT_ALIASES,
            dtype=text.dtype,
        )
    return {"text_encoder": params}
