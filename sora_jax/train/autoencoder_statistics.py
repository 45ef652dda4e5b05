"""From a trained autoencoder's parameters to a folder that `prepare` and `sample` use."""

import dataclasses
import pathlib

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

CLIPS = 256  # measured for the latents' mean and deviation


def export_autoencoder(settings: Settings, params: dict, stream: Stream, folder: pathlib.Path):
    """Measure the latents and write the weights with their statistics.

    Args:
      params: of the autoencoder, on the current mesh.
      stream: crops of pixels; its first batches are measured.
    """
    batches = -(-CLIPS // settings.data.batch)
    measured = measure_latents(
        settings.autoencoder, params, (stream.batch_at(n) for n in range(min(batches, stream.batches)))
    )
    save_model(folder, Autoencoder, measured, params)


def measure_latents(settings: AutoencoderSettings, params: dict, batches) -> AutoencoderSettings:
    """The settings with each latent channel's mean and standard deviation.

    Args:
      batches: this process's rows of pixels, [B, F, H, W, 3] uint8.
    """

    @jax.jit
    def moments(params, batch):
        mean, _ = bind(Autoencoder, settings, params).encode(batch.astype(jnp.float32) / 127.5 - 1)
        axes = (0, 1, 2, 3)
        return jnp.mean(mean, axes), jnp.mean(jnp.square(mean), axes)

    first, second = np.mean(
        [jax.device_get(moments(params, place(batch, AutoencoderObjective.axes))) for batch in batches], axis=0
    )
    std = np.sqrt(np.maximum(second - first**2, 1e-12))
    return dataclasses.replace(
        settings,
        latent_mean=tuple(float(x) for x in first),
        latent_std=tuple(float(x) for x in std),
    )
