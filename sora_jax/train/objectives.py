"""What can be trained: parameters, randomness and loss of each, for one step and one loop.

An objective is static and hashable, and has
  init(key) -> params
  draw(key, batch) -> everything random that the loss of this batch needs, leading axis [B]
  loss(params, batch, drawn) -> (sum of the loss over what counts, how much counts, further sums to average)
  work(batch) -> what one host's numpy batch holds: units and model FLOPs, for the metrics
  axes, unit: logical axes of a batch's leading dimensions; what throughput is counted in
`loss` is deterministic, so that a batch can be split into micro-batches without changing the update.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.flow import flow_errors, sample_times
from sora_jax.mesh import spec
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.module import bind, init_params
from sora_jax.models.video_model import VideoModel
from sora_jax.patches import PatchBatch
from sora_jax.settings import Settings
from sora_jax.train.flops import train_flops


@dataclasses.dataclass(frozen=True)
class FlowObjective:
    """Flow matching: the transformer and its text encoder learn the velocity of packed latent clips."""

    settings: Settings
    axes = "batch tokens"
    unit = "patches"

    def init(self, key):
        return init_params(VideoModel, self.settings, key)

    def work(self, batch: PatchBatch) -> tuple[int, float]:
        """Patches that are not padding, and the FLOPs of a step on them."""
        return int(np.count_nonzero(batch.segments)), train_flops(self.settings, batch)

    def draw(self, key, batch: PatchBatch):
        """Noise for each patch, [B, N, P], and a time for each clip, [B, row_clips]."""
        noise_key, time_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, batch.patches.shape, out_sharding=spec("batch tokens ."))
        return noise, sample_times(time_key, batch, self.settings.data.row_clips, self.settings.flow)

    def loss(self, params, batch: PatchBatch, drawn):
        model = bind(VideoModel, self.settings, params)
        embedded = model.embed_text(batch)
        errors, counts = flow_errors(
            lambda patches, times, levels: model.velocity(embedded, patches, times, levels), batch, *drawn
        )
        return jnp.sum(errors), jnp.sum(counts), {}


@dataclasses.dataclass(frozen=True)
class AutoencoderObjective:
    """Reconstruction of pixel clips: L1 + mse * MSE + kl * KL, each a mean over a clip."""

    settings: Settings
    axes = "batch . height"
    unit = "frames"

    def init(self, key):
        return init_params(Autoencoder, self.settings.autoencoder, key)

    def work(self, batch) -> tuple[int, float]:
        """Frames of pixels; its FLOPs are not counted (nan)."""
        return batch.shape[0] * batch.shape[1], float("nan")

    def draw(self, key, batch):
        """Noise for the posterior of each latent, [B, f, h, w, C]."""
        settings = self.settings.autoencoder
        B, F, H, W, _ = batch.shape
        f = (F - 1) // settings.temporal_stride + 1
        shape = (B, f, H // settings.spatial_stride, W // settings.spatial_stride, settings.latent_channels)
        return jax.random.normal(key, shape, out_sharding=spec("batch . height . ."))

    def loss(self, params, batch, drawn):
        """Batch: pixels, [B, F, H, W, 3] uint8."""
        model = bind(Autoencoder, self.settings.autoencoder, params)
        video = batch.astype(jnp.float32) / 127.5 - 1
        mean, log_variance = model.encode(video)
        reconstruction = model.decode(mean + jnp.exp(0.5 * log_variance) * drawn)
        error = reconstruction.astype(jnp.float32) - video
        l1, mse = (jnp.mean(f(error), axis=(1, 2, 3, 4)) for f in (jnp.abs, jnp.square))
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)
        kl = jnp.mean(divergence, axis=(1, 2, 3, 4))
        total = jnp.sum(l1 + self.settings.loss.mse * mse + self.settings.loss.kl * kl)
        sums = {"l1": jnp.sum(l1), "mse": jnp.sum(mse), "kl": jnp.sum(kl)}
        return total, jnp.asarray(len(batch), jnp.float32), sums


def make_objective(settings: Settings):
    """The objective that `settings.objective` names."""
    return {"flow": FlowObjective, "autoencoder": AutoencoderObjective}[settings.objective](settings)
