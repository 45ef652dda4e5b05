"""What can be trained: parameters, randomness and loss of each, for one step and one loop.

An objective is static and hashable, and has
  init(key) -> params
  frozen() -> further parameters that the loss needs and no step changes; read from files, on the current mesh
  draw(key, batch, step) -> everything else that the loss of this batch needs, random or not, leading axis [B]
  loss(params, frozen, batch, drawn) -> (sum of the loss over what counts, how much counts, further sums)
  work(batch) -> what one process's numpy batch holds: units and model FLOPs, for the metrics
  axes, unit: logical axes of a batch's leading dimensions; what throughput is counted in
`loss` is deterministic, so that a batch can be split into micro-batches without changing the update.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.flow import flow_errors, sample_times
from sora_jax.mesh import spec
from sora_jax.models.module import bind
from sora_jax.models.video_model import init_trained, join, trained_model
from sora_jax.patches import PatchBatch
from sora_jax.settings import Settings
from sora_jax.train.autoencoder_objective import AutoencoderObjective
from sora_jax.train.flops import train_flops
from sora_jax.train.frozen import load_frozen


@dataclasses.dataclass(frozen=True)
class FlowObjective:
    """Flow matching: the transformer and its text encoder learn the velocity of packed latent clips."""

    settings: Settings
    axes = "batch tokens"
    unit = "patches"

    def init(self, key):
        return init_trained(self.settings, key)

    def work(self, batch: PatchBatch) -> tuple[int, float]:
        """Patches that are not padding, and the FLOPs of a step on them."""
        return int(np.count_nonzero(batch.segments)), train_flops(self.settings, batch)

    def frozen(self) -> dict:
        """A given text encoder, unless it was run beforehand, and the model that adapters adapt."""
        return load_frozen(self.settings, text=not self.settings.data.embeddings)

    def draw(self, key, batch: PatchBatch, step):
        """Noise for each patch, [B, N, P]; a time for each clip and for each frame with its own, [B, T]."""
        del step
        settings = self.settings
        levels = 0 if batch.levels is None else settings.masks.row_levels
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, batch.patches.shape, out_sharding=spec("batch tokens ."))
        return noise, sample_times(time_key, batch, settings.data.row_clips, settings.flow, levels=levels)

    def loss(self, params, frozen, batch: PatchBatch, drawn):
        model = bind(trained_model(self.settings), self.settings, join(params, frozen))
        embedded = model.embed_text(batch)
        errors, counts = flow_errors(
            lambda patches, times, levels: model.velocity(embedded, patches, times, levels),
            batch,
            *drawn,
            known_time=self.settings.masks.noise,
        )
        return jnp.sum(errors), jnp.sum(counts), {}


def make_objective(settings: Settings):
    """The objective that `settings.objective` names."""
    return {"flow": FlowObjective, "autoencoder": AutoencoderObjective}[settings.objective](settings)
