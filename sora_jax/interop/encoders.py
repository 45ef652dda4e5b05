"""Published encoders of text and images, read from the folders in which transformers keeps them."""

from sora_jax.config.schema import ImageSettings, TextSettings
from sora_jax.interop.tables import check_tensors, foreign_shapes, load_foreign
from sora_jax.interop.tensors import tensors_in
from sora_jax.interop.wan.tables import image_table, image_unused, text_table, text_unused
from sora_jax.models.image_encoder import ImageEncoder
from sora_jax.models.text_encoder import TextEncoder

VISION = "vision_model."  # before an image encoder's names as transformers 4, and every CLIPModel, has them


def load_encoder(settings: TextSettings | ImageSettings) -> dict:
    """Parameters of the encoder in the folder `settings.weights`, on the current mesh, in its compute type.

    Raises: InputError if it is not there, or is no UMT5 or CLIP of these sizes; names the tensor.
    """
    tensors, table, module_class, unused = _described(settings)
    where, dtype = settings.weights, settings.dtype
    return load_foreign(tensors, table, module_class, settings, where=where, unused=unused, dtype=dtype)


def check_encoder(settings: TextSettings | ImageSettings) -> list[str]:
    """Lines on tensors that are left out. Raises: InputError as `load_encoder` does, but loads nothing."""
    tensors, table, module_class, unused = _described(settings)
    check_tensors(tensors, foreign_shapes(table, module_class, settings), settings.weights, unused)
    if not unused:
        return []
    first = min(unused)
    more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
    return [f"{settings.weights}: {first!r}{more} left out, as the model needs none of them"]


def _described(settings):
    """The tensors of an encoder, their table, its module, and the names of the tensors that it does without."""
    tensors = tensors_in(settings.weights)
    if isinstance(settings, TextSettings):
        return tensors, text_table(settings), TextEncoder, text_unused(tensors)
    tensors = {name.removeprefix(VISION): tensor for name, tensor in tensors.items()}
    return tensors, image_table(settings), ImageEncoder, image_unused(tensors, settings)
