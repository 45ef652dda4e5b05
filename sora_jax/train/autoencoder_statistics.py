"""Saving a trained autoencoder with the mean and deviation of its latents, for `prepare` and `sample`."""

import dataclasses
import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.checkpoint.model_folder import save_model
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.mesh import place
from sora_jax.data.loader.stream import Stream
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import bind
from sora_jax.train.objectives.autoencoder import AutoencoderObjective

CLIPS = 256  # measured
MIN_VARIANCE = 1e-12


def save_autoencoder(settings: Settings, params: dict, stream: Stream, folder: pathlib.Path):
    """Write a folder with the autoencoder's weights and the statistics of its latents.

    Args:
      params: of the autoencoder, on the current mesh.
      stream: crops of pixels; its first batches are measured.
    """
    batches = min(-(-CLIPS // settings.data.batch), stream.batches)
    measured = with_statistics(settings.autoencoder, params, (stream.batch_at(n) for n in range(batches)))
    save_model(folder, Autoencoder, measured, params)


def with_statistics(settings: AutoencoderSettings, params: dict, batches: Iterable) -> AutoencoderSettings:
    """The settings with the mean and standard deviation of each latent channel.

    Args:
      batches: this process's pixels, [B, F, H, W, 3] uint8.
    """

    @jax.jit
    def moments(params, batch):
        mean, _ = bind(Autoencoder, settings, params).encode(batch.astype(jnp.float32) / 127.5 - 1)
        axes = (0, 1, 2, 3)
        return jnp.mean(mean, axes), jnp.mean(jnp.square(mean), axes)

    measured = [jax.device_get(moments(params, place(batch, AutoencoderObjective.axes))) for batch in batches]
    first, second = np.mean(measured, axis=0)
    std = np.sqrt(np.maximum(second - first**2, MIN_VARIANCE))
    return dataclasses.replace(settings, latent_mean=tuple(map(float, first)), latent_std=tuple(map(float, std)))
