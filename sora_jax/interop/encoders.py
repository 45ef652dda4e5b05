"""Published encoders of text and images, read as they are from the folders in which transformers keeps them."""

from sora_jax.config.schema import ImageSettings, TextSettings
from sora_jax.interop.safetensors_folder import tensors_in
from sora_jax.interop.tables import check_tensors, foreign_shapes, load_foreign
from sora_jax.interop.wan import TEXT_ALIASES, image_table, image_unused, text_table
from sora_jax.models.image_encoder import ImageEncoder
from sora_jax.models.text_encoder import TextEncoder


def load_encoder(settings: TextSettings | ImageSettings) -> dict:
    """Parameters of the encoder in the folder `settings.weights`, on the current mesh, in its compute type.

    Raises: InputError if it is not there, or no UMT5 or CLIPVisionModel of these sizes; names the tensor.
    """
    tensors, table, module_class, unused = _described(settings)
    where, dtype = settings.weights, settings.dtype
    return load_foreign(tensors, table, module_class, settings, where=where, unused=unused, dtype=dtype)


def check_encoder(settings: TextSettings | ImageSettings):
    """Raise InputError as `load_encoder` does, but load nothing."""
    tensors, table, module_class, unused = _described(settings)
    check_tensors(tensors, foreign_shapes(table, module_class, settings), settings.weights, unused)


def _described(settings):
    tensors = tensors_in(settings.weights)
    if isinstance(settings, TextSettings):
        return tensors, text_table(settings), TextEncoder, TEXT_ALIASES
    prefix = "vision_model."  # as transformers 4 wrote it
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors, image_table(settings), ImageEncoder, image_unused(tensors, settings)
