"""Models by their name on the Hugging Face Hub."""

import pathlib
import re

from sora_jax.core.errors import InputError

WANTED = ("*.json", "*.safetensors", "*.model")


def fetch(name: str) -> pathlib.Path:
    """The folder of a model that the hub calls OWNER/NAME, downloaded if it is not in the hub's cache.

    Raises: InputError if huggingface_hub is not installed, the hub can't be reached or has no such model.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"{name}: no such folder, and no name of a model on the hub, OWNER/NAME")
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            f"{name}: no such folder; to download the model of that name, pip install 'sora_jax[hub]'"
        ) from None
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(WANTED)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{name}: no such folder, and the hub does not give it: {reason}") from error
