"""The weights that a run begins with, where they are an earlier run's and not random."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from sora_jax.checkpoint.meta import EXECUTION, check_models, read_meta
from sora_jax.checkpoint.model_folder import autoencoder_folder, load_model, load_settings, model_hash
from sora_jax.checkpoint.restore import abstract_on_mesh, restore_ema
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.data.loader.mixture import Mixture
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.train.state import TrainState

MEASURED = ("latent_mean", "latent_std")  # of an autoencoder, after its training


def autoencoder_of(settings: Settings, records: Mixture) -> pathlib.Path:
    """The folder of the autoencoder that makes a transformer's latents: in the data, or named for the step."""
    folder = settings.data.autoencoder
    return autoencoder_folder(folder) if folder else records.autoencoder


def check_pretrained(settings: Settings, records: Mixture):
    """Raise InputError if `train.init_from` can't begin a run with these settings and data."""
    folder = pathlib.Path(settings.train.init_from)
    if settings.objective == "flow":
        stored, _ = read_meta(*find_checkpoint(folder))
        check_models(stored, settings, str(folder))
        for name, same in (
            ("tokenizer.model", (folder / "tokenizer.model").read_bytes() == records.tokenizer.read_bytes()),
            ("autoencoder", model_hash(folder / "autoencoder") == model_hash(autoencoder_of(settings, records))),
        ):
            if not same:
                raise InputError(
                    f"{records.path}: its {name} is not that of {folder}; make the data with "
                    f"`prepare --autoencoder={folder} --tokenizer={folder / 'tokenizer.model'}`"
                )
        return
    stored = load_settings(autoencoder_folder(folder), AutoencoderSettings)
    for field in dataclasses.fields(stored):
        old, new = getattr(stored, field.name), getattr(settings.autoencoder, field.name)
        if field.name not in (*EXECUTION, *MEASURED) and old != new:
            raise InputError(f"{folder}: made with config.autoencoder.{field.name}={old}, now {new}")


def begin_with(settings: Settings, state: TrainState) -> TrainState:
    """A fresh state with the weights that `train.init_from` names; what it has none of, a discriminator, stays.

    Args:
      state: on the current mesh; so is what is returned.
    """
    folder = pathlib.Path(settings.train.init_from)
    if settings.lora.rank:
        return state  # the weights are what the adapters adapt: see sora_jax.checkpoint.frozen_params
    if settings.objective == "flow":
        params = restore_ema(*find_checkpoint(folder), abstract_on_mesh(state.params))
    else:
        _, weights = load_model(autoencoder_folder(folder), Autoencoder, AutoencoderSettings)
        params = state.params | {"autoencoder": weights}
    # Two sets of buffers: the state is donated to each step.
    return state.replace(params=params, ema=jax.tree.map(jnp.copy, params))
