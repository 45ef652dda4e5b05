"""Starting a run from trained weights: the averaged weights of an earlier run, a released or a converted model."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from sora_jax.checkpoint.frozen_params import with_adapters
from sora_jax.checkpoint.meta import EXECUTION, MODELS, check_models, read_meta
from sora_jax.checkpoint.model_folder import autoencoder_folder, load_model, load_settings, model_hash
from sora_jax.checkpoint.restore import restore_trained
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.config.schema import REFINE, AutoencoderSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path
from sora_jax.data.loader.mixture import Mixture
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.video_model import join
from sora_jax.train.state import TrainState

STATISTICS = ("latent_mean", "latent_std")  # settings that are measured after an autoencoder's training


def autoencoder_of(settings: Settings, records: Mixture) -> pathlib.Path:
    """The folder of the autoencoder of a transformer's latents: `data.autoencoder`, or the data set's own."""
    folder = settings.data.autoencoder
    return autoencoder_folder(folder) if folder else records.autoencoder


def check_init_from(settings: Settings, records: Mixture):
    """Raise InputError if the weights of `train.init_from` do not fit these settings and data."""
    folder = as_path(settings.train.init_from)
    if settings.objective == "autoencoder":
        return check_autoencoder(settings, folder)
    stored, _ = read_meta(*find_checkpoint(folder))
    # Any transformer may begin as another one, or learn from it.
    groups = MODELS if stored.objective == "autoencoder" else MODELS[1:]
    if settings.objective == REFINE and not stored.transformer.condition_channels:
        stored = with_condition(stored, settings)
    check_models(stored, settings, str(folder), groups)
    for name, same in (
        ("tokenizer.model", (folder / "tokenizer.model").read_bytes() == records.tokenizer.read_bytes()),
        ("autoencoder", model_hash(folder / "autoencoder") == model_hash(autoencoder_of(settings, records))),
    ):
        if not same:
            raise InputError(
                f"{records.path}: its {name} is not that of {folder}; make the data with "
                f"`prepare --autoencoder={folder} --tokenizer={folder / 'tokenizer.model'}`"
            )


def with_condition(stored: Settings, settings: Settings) -> Settings:
    """The settings of a model without channels beside the noise, with those of a refiner that begins as it."""
    channels = settings.transformer.condition_channels
    return dataclasses.replace(
        stored, transformer=dataclasses.replace(stored.transformer, condition_channels=channels)
    )


def check_autoencoder(settings: Settings, folder: pathlib.Path):
    """Raise InputError if the autoencoder in a folder is not the one that the settings describe."""
    stored = load_settings(autoencoder_folder(folder), AutoencoderSettings)
    for field in dataclasses.fields(stored):
        old, new = getattr(stored, field.name), getattr(settings.autoencoder, field.name)
        if field.name not in (*EXECUTION, *STATISTICS) and old != new:
            raise InputError(f"{folder}: made with config.autoencoder.{field.name}={old}, now {new}")


def init_from(settings: Settings, state: TrainState) -> TrainState:
    """A new state with the weights of `train.init_from`, and its own where these have none.

    Those are a discriminator's, or a refiner's for its condition, which are 0: it begins as the other model.

    Args:
      state: on the current mesh; so is the returned one.
    """
    folder = as_path(settings.train.init_from)
    if settings.lora.rank:
        return state  # the weights are the frozen base of the adapters: see sora_jax.checkpoint.frozen_params
    if settings.objective != "autoencoder":
        found, step = find_checkpoint(folder)
        params = restore_trained(found, step, read_meta(found, step)[0])
        params = with_adapters(params, settings, settings.lora.base)
        if settings.objective == REFINE:
            params = join(params, state.params)
        if settings.objective == "moment_matching":
            params = {name: jax.tree.map(jnp.copy, params) for name in state.params}
    else:
        _, weights = load_model(autoencoder_folder(folder), Autoencoder, AutoencoderSettings)
        params = state.params | {"autoencoder": weights}
    # Copied, because both are donated to the first update.
    return state.replace(params=params, ema=jax.tree.map(jnp.copy, params))
