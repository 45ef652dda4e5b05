"""A refiner of random weights, with an autoencoder of two levels: a patch is 4x4 pixels of two frames."""

import dataclasses

import jax
import jax.numpy as jnp
import tiny

from sora_jax.checkpoint.manager import save_weights
from sora_jax.checkpoint.model_folder import save_model
from sora_jax.config.schema import Settings
from sora_jax.data.tokenizer import Tokenizer, train_tokenizer
from sora_jax.generate.generator import Generator
from sora_jax.generate.refine.refiner import Refiner
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.video_model import VideoModel

CONDITION = tiny.CODER.temporal_stride + tiny.CODER.latent_channels


def settings_of(objective: str = "refine", **groups) -> Settings:
    """Settings of a refiner; `groups`: further changes, as for `tiny.change`."""
    transformer = {"channels": 4, "layers": 1, "condition_channels": CONDITION, "predicts": "data"}
    data = {"autoencoder": "autoencoder", "crop_size": "16x16", "sequence_length": 80, "clips_per_sequence": 1}
    made = {
        "text": {"vocabulary": 400},
        "transformer": transformer,
        "autoencoder": vars(tiny.CODER),
        "data": data,
        "flow": {"time_max": 0.65, "shift": 2.0},
        "sample": {"size": "32x32", "frames": 9, "steps": 2, "guidance": 1.0},
    }
    for name, keys in groups.items():
        made[name] = made.get(name, {}) | keys
    # Changed in one go: groups are checked against each other.
    changed = {name: dataclasses.replace(getattr(tiny.SETTINGS, name), **keys) for name, keys in made.items()}
    return dataclasses.replace(tiny.SETTINGS, objective=objective, **changed)


def make_refiner(folder, **groups) -> Refiner:
    """The refiner, on the current mesh; folder: for its tokenizer."""
    settings = settings_of(**groups)
    params = as_arrays(tiny.random_params(VideoModel, settings))
    coder = as_arrays(tiny.random_params(Autoencoder, tiny.CODER))
    if not (folder / "tokenizer.model").exists():
        train_tokenizer(["a rabbit", "a bird"], folder / "tokenizer.model", vocabulary=400)
    generator = Generator(settings, params, tiny.CODER, coder, Tokenizer(folder / "tokenizer.model"), 1)
    return Refiner(generator, settings.refine.sample_noise, settings.flow.time_max)


def write_refiner(folder, refiner: Refiner):
    """A workdir of the refiner, with its tokenizer in it already."""
    save_weights(folder, refiner.generator.params, refiner.settings)
    save_model(folder / "autoencoder", Autoencoder, tiny.CODER, refiner.generator.autoencoder_params)


def as_arrays(params):
    return jax.tree.map(jnp.asarray, params)
