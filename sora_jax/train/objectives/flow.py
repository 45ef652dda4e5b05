"""Flow matching: the transformer and its text encoder learn the velocity of packed latent clips."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.checkpoint.frozen_params import load_frozen_params
from sora_jax.checkpoint.model_folder import autoencoder_folder, load_model
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.mesh import spec
from sora_jax.core.patches import PatchBatch
from sora_jax.core.random_keys import Purpose, purpose_key
from sora_jax.diffusion.flow import flow_errors, sample_times
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.encode_packed import encode_packed, place_packed
from sora_jax.models.layers.params import bind
from sora_jax.models.video_model import init_trained, join, trained_model
from sora_jax.train.monitoring.flops import train_flops


@dataclasses.dataclass(frozen=True)
class FlowObjective:
    """The flow-matching loss of a VideoModel. Source: Lipman et al. 2022 (arXiv 2210.02747).

    Attributes:
      autoencoder: settings of the autoencoder that encodes pixels in the step; None: the data holds latents.
    """

    settings: Settings
    autoencoder: AutoencoderSettings | None = None
    axes = "batch tokens"
    unit = "patches"
    players: ClassVar[tuple[str, ...]] = ()

    @property
    def rates(self) -> dict[str, float]:
        return {}

    def init(self, key):
        return init_trained(self.settings, purpose_key(key, Purpose.INIT))

    def work(self, batch: PatchBatch) -> tuple[int, float]:
        """Patches without padding, and the model FLOPs of a step on them."""
        return int(np.count_nonzero(batch.segment_ids)), train_flops(self.settings, batch)

    def place(self, batch: PatchBatch) -> PatchBatch:
        return place_packed(batch)

    def frozen_params(self) -> dict:
        """A published text encoder, the autoencoder that runs in the step, the base model of adapters."""
        frozen = load_frozen_params(self.settings, text=not self.settings.data.embeddings)
        if self.autoencoder:
            folder = autoencoder_folder(self.settings.data.autoencoder)
            frozen["autoencoder"] = load_model(folder, Autoencoder, AutoencoderSettings)[1]
        return frozen

    def draw(self, key, batch: PatchBatch, step):
        """Noise for each patch, [B, N, P]; a time for each clip and for each frame with its own, [B, T]."""
        settings = self.settings
        frame_times = 0 if batch.time_index is None else settings.masks.times_per_sequence
        transformer = settings.transformer
        shape = (*batch.segment_ids.shape, math.prod(transformer.patch) * transformer.channels)
        noise_key, time_key = (purpose_key(key, purpose, step) for purpose in (Purpose.NOISE, Purpose.TIMES))
        noise = jax.random.normal(noise_key, shape, out_sharding=spec("batch tokens ."))
        times = sample_times(
            time_key, batch, settings.data.clips_per_sequence, settings.flow, frame_times=frame_times
        )
        return noise, times

    def loss(self, params, frozen_params, batch: PatchBatch, drawn):
        """The squared error of the velocity, summed over patches, and their number."""
        batch, frozen_params = self.encoded(batch, frozen_params)
        return self.flow_loss(params, frozen_params, batch, *drawn)

    def flow_loss(self, params, frozen_params, batch: PatchBatch, noise, times):
        """The loss of a batch of latents."""
        model = bind(trained_model(self.settings), self.settings, join(params, frozen_params))
        embedded = model.embed_text(batch)
        errors, counts = flow_errors(
            lambda patches, times, time_index: model.velocity(embedded, patches, times, time_index),
            batch,
            noise,
            times,
            conditioning_time=self.settings.masks.noise,
        )
        return jnp.sum(errors), jnp.sum(counts), {}

    def encoded(self, batch: PatchBatch, frozen_params: dict) -> tuple[PatchBatch, dict]:
        """The batch with latents, if it held pixels, and the frozen parameters without the autoencoder's."""
        if not self.autoencoder:
            return batch, frozen_params
        left = {name: params for name, params in frozen_params.items() if name != "autoencoder"}
        patch = self.settings.transformer.patch
        return encode_packed(self.autoencoder, frozen_params["autoencoder"], batch, patch), left
