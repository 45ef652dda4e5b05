"""What can be trained: parameters, randomness and loss of each, for one step and one loop.

An objective is static and hashable, and has
  init(key) -> params
  frozen() -> further parameters that the loss needs and no step changes; read from files, on the current mesh
  draw(key, batch, step) -> everything else that the loss of this batch needs, random or not, leading axis [B]
  loss(params, frozen, batch, drawn) -> (sum of the loss over what counts, how much counts, further sums)
  work(batch) -> what one process's numpy batch holds: units and model FLOPs, for the metrics
  place(batch) -> one process's numpy batch, as global arrays
  axes, unit: logical axes of a batch's leading dimensions; what throughput is counted in
`loss` is deterministic, so that a batch can be split into micro-batches without changing the update.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.checkpoint.frozen_params import load_frozen
from sora_jax.checkpoint.model_folder import autoencoder_folder, load_model, load_settings
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.mesh import spec
from sora_jax.core.patches import PatchBatch
from sora_jax.diffusion.flow import flow_errors, sample_times
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.encode_packed import encode_rows, place_rows
from sora_jax.models.layers.params import bind
from sora_jax.models.video_model import init_trained, join, trained_model
from sora_jax.train.monitoring.flops import train_flops
from sora_jax.train.objectives.autoencoder import AutoencoderObjective


@dataclasses.dataclass(frozen=True)
class FlowObjective:
    """Flow matching: the transformer and its text encoder learn the velocity of packed latent clips.

    autoencoder: of the one that encodes them in the step; None: they are encoded.
    """

    settings: Settings
    autoencoder: AutoencoderSettings | None = None
    axes = "batch tokens"
    unit = "patches"

    def init(self, key):
        return init_trained(self.settings, key)

    def work(self, batch: PatchBatch) -> tuple[int, float]:
        """Patches that are not padding, and the FLOPs of a step on them."""
        return int(np.count_nonzero(batch.segment_ids)), train_flops(self.settings, batch)

    def place(self, batch: PatchBatch) -> PatchBatch:
        return place_rows(batch)

    def frozen(self) -> dict:
        """A text encoder and an autoencoder that stay as they are and run in the step; what adapters adapt."""
        frozen = load_frozen(self.settings, text=not self.settings.data.embeddings)
        if self.autoencoder:
            folder = autoencoder_folder(self.settings.data.autoencoder)
            frozen["autoencoder"] = load_model(folder, Autoencoder, AutoencoderSettings)[1]
        return frozen

    def draw(self, key, batch: PatchBatch, step):
        """Noise for each patch, [B, N, P]; a time for each clip and for each frame with its own, [B, T]."""
        del step
        settings = self.settings
        frame_times = 0 if batch.time_index is None else settings.masks.times_per_sequence
        noise_key, time_key = jax.random.split(key)
        transformer = settings.transformer
        shape = (*batch.segment_ids.shape, math.prod(transformer.patch) * transformer.channels)
        noise = jax.random.normal(noise_key, shape, out_sharding=spec("batch tokens ."))
        return noise, sample_times(
            time_key, batch, settings.data.clips_per_sequence, settings.flow, frame_times=frame_times
        )

    def loss(self, params, frozen, batch: PatchBatch, drawn):
        if self.autoencoder:
            frozen = dict(frozen)
            coder = frozen.pop("autoencoder")
            batch = encode_rows(self.autoencoder, coder, batch, self.settings.transformer.patch)
        model = bind(trained_model(self.settings), self.settings, join(params, frozen))
        embedded = model.embed_text(batch)
        errors, counts = flow_errors(
            lambda patches, times, time_index: model.velocity(embedded, patches, times, time_index),
            batch,
            *drawn,
            conditioning_time=self.settings.masks.noise,
        )
        return jnp.sum(errors), jnp.sum(counts), {}


def make_objective(settings: Settings):
    """The objective that `settings.objective` names."""
    if settings.objective == "autoencoder":
        return AutoencoderObjective(settings)
    folder = settings.data.autoencoder
    # What latents are is said by the autoencoder itself: its means and deviations, the type it computes in.
    coder = load_settings(autoencoder_folder(folder), AutoencoderSettings) if folder else None
    return FlowObjective(settings, coder)
