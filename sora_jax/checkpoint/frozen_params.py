"""Parameters that training does not change: a published text encoder, the base model of adapters."""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.restore import restore_video_model
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path
from sora_jax.interop.adapters.weights import add_adapter, chosen_adapters
from sora_jax.interop.encoders import load_encoder
from sora_jax.models.video_model import abstract_trained, join

LOW_NOISE = "low_noise"  # folder in a workdir: the workdir of the expert for low noise times
FLOAT32 = ("time_in", "time_out", "time_modulation")  # layers that always compute in float32


def load_frozen_params(settings: Settings, *, have: dict | None = None, text: bool = True) -> dict:
    """The frozen parameters of a VideoModel, on the current mesh, in the types that they compute in.

    Args:
      have: parameters of a model with the same text encoder, which is then not read again.
      text: whether to load the text encoder.
    Raises: InputError if a file that the settings name is absent, or of another model.
    """
    frozen = {}
    if settings.lora.rank:
        frozen = load_base(settings)
    if settings.text.weights and text:
        if not have and not as_path(settings.text.weights).is_dir():
            raise InputError(
                f"config.text.weights: {settings.text.weights}: no such folder; it holds the text encoder that "
                f"the model was trained with: put it there"
            )
        frozen["text_encoder"] = have["text_encoder"] if have else load_encoder(settings.text)
    return frozen


def load_base(settings: Settings) -> dict:
    """The parameters of an adapter's base model, in the types that they compute in.

    Raises: InputError if it holds adapters itself, or one of config.lora.base can't be added.
    """
    workdir = as_path(settings.train.init_from)
    folder, step = find_checkpoint(workdir)
    stored, _ = read_meta(folder, step)
    if stored.lora.rank:
        raise InputError(f"{workdir}: holds adapters itself; merge them into their model with `convert` first")
    return with_adapters(restore_for_compute(folder, step, stored), settings, settings.lora.base)


def with_adapters(params: dict, settings: Settings, adapters: Sequence[str]) -> dict:
    """Parameters of a VideoModel with adapters added, such as ("style.safetensors:0.8", "low=fast.safetensors").

    Of a model with two experts the settings tell which of them the parameters are of.
    """
    expert = "high" if settings.flow.time_max == 1 else "low"
    transformer = params["transformer"]
    for adapter, strength in chosen_adapters(adapters, settings.transformer, expert):
        transformer = add_adapter(transformer, settings.transformer, adapter, strength)
    return params | {"transformer": transformer}


def restore_for_compute(folder: pathlib.Path, step: int, settings: Settings) -> dict:
    """The averaged parameters of a run, in the types that they compute in."""
    return restore_video_model(folder, step, settings, compute_types(abstract_trained(settings), settings))


def compute_types(abstract: dict, settings: Settings) -> dict:
    """A VideoModel's parameters in the types that their layers compute in: same results, half the memory.

    Args:
      abstract: shapes, float32.
    """

    def held(path, x):
        names = [key.key for key in path]
        if names[-1] != "kernel" or names[1] in FLOAT32:
            return x
        dtype = settings.text.dtype if names[0] == "text_encoder" else settings.transformer.dtype
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding)

    return jax.tree.map_with_path(held, abstract)


def restore_model(folder: pathlib.Path, step: int, settings: Settings, *, text: bool = True) -> dict:
    """All parameters of a VideoModel, those of a checkpoint and the frozen ones, in the types they compute in.

    Args:
      text: False: leave out a frozen text encoder.
    """
    return join(restore_for_compute(folder, step, settings), load_frozen_params(settings, text=text))
