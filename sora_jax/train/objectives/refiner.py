"""A refiner: the transformer, given a whole video of lower quality beside the noise."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from sora_jax.core.mesh import spec
from sora_jax.core.patches import PatchBatch
from sora_jax.core.random_keys import Purpose, purpose_key
from sora_jax.diffusion.conditioning import refiner_condition
from sora_jax.diffusion.flow import times_at
from sora_jax.train.objectives.flow import FlowObjective


@dataclasses.dataclass(frozen=True)
class RefinerObjective(FlowObjective):
    """The flow-matching loss on clips whose inputs, noised at random, are given.

    The noise keeps the model from copying an input's faults. Source: Ho et al. 2021 (arXiv 2106.15282), section 4.
    """

    def draw(self, key, batch: PatchBatch, step):
        """(noise [B, N, P], times [B, T], noise of the condition [B, N, P], its level in each clip [B, clips])."""
        noise, times = super().draw(key, batch, step)
        refine, clips = self.settings.refine, self.settings.data.clips_per_sequence
        noise_key, level_key, drop_key = jax.random.split(purpose_key(key, Purpose.CONDITION_NOISE, step), 3)
        shape, layout = (len(noise), clips), spec("batch .")
        level = refine.noise * jax.random.uniform(level_key, shape, out_sharding=layout)
        dropped = jax.random.uniform(drop_key, shape, out_sharding=layout) < refine.condition_dropout
        added = jax.random.normal(noise_key, noise.shape, out_sharding=spec("batch tokens ."))
        return noise, times, added, jnp.where(dropped, 1.0, level)

    def loss(self, params, frozen_params, batch: PatchBatch, drawn):
        """The squared error of the velocity, summed over patches, and their number."""
        noise, times, added, levels = drawn
        batch, frozen_params = self.encoded(batch, frozen_params)
        level = times_at(jnp.pad(levels, ((0, 0), (1, 0))), batch.segment_ids)
        count = math.prod(self.settings.transformer.patch)
        condition = refiner_condition(batch.condition, batch.trust, added, level, count)
        batch = batch.replace(condition=condition, trust=None)
        return self.flow_loss(params, frozen_params, batch, noise, times)
