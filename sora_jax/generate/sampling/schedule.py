"""The denoising schedule: the noise times of a run, and what each step does, known before the first step."""

import dataclasses
import math

import numpy as np

from sora_jax.config.schema import SampleSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.patches import patch_grid
from sora_jax.diffusion.flow import shift_of
from sora_jax.diffusion.time_grids import solver_times
from sora_jax.generate.generator import Generator, latent_shape
from sora_jax.generate.sampling.step_cache import ALWAYS_RUN


@dataclasses.dataclass(frozen=True)
class Step:
    """One step.

    low_noise: the model is the expert for low noise.
    guidance: scale; 1: no guidance.
    cached: the model does not run; the clean data of the last step are reused.
    """

    low_noise: bool
    guidance: float
    cached: bool


@dataclasses.dataclass(frozen=True)
class DenoisingSchedule:
    """times: falling to 0, [steps + 1] float32; steps: one from each time to the next."""

    times: np.ndarray
    steps: tuple[Step, ...]

    @property
    def cached(self) -> list[int]:
        """Numbers of the steps that the step cache serves."""
        return [i for i, step in enumerate(self.steps) if step.cached]


def denoising_schedule(
    generator: Generator, sample: SampleSettings, *, strength: float = 1.0
) -> DenoisingSchedule:
    """The schedule of a run.

    Args:
      strength: share of the steps that are run, the last ones, in (0, 1]; 1 begins with noise.
    Raises: InputError for a video size that the model can't make, or a step cache whose change is not measured.
    """
    times = denoising_times(generator.settings, sample, strength)
    return DenoisingSchedule(times, tuple(_steps(generator, sample, times)))


def guidance_low(generator: Generator, sample: SampleSettings) -> float:
    """The guidance scale of the expert for low noise, of a model that has one."""
    return sample.guidance_low or generator.low_noise[1].sample.guidance


def denoising_times(settings: Settings, sample: SampleSettings, strength: float) -> np.ndarray:
    """Noise times from `strength` (before the shift) down to 0, [steps + 1] float32."""
    grid = patch_grid(latent_shape(settings, sample), settings.transformer.patch)
    shift = sample.shift or settings.flow.shift_scale * float(shift_of(int(np.prod(grid)), grid[0]))
    return np.asarray(solver_times(sample.time_grid, sample.steps, shift, strength))


def _steps(generator, sample, times):
    threshold, change = sample.step_cache_threshold, generator.velocity_change
    if threshold and change is None:
        raise InputError(
            f"config.sample.step_cache_threshold={threshold:g}: the velocity change of this model has not been "
            f"measured; `sora-jax sample` measures it the first time"
        )
    changes = change.at(times) if threshold else np.zeros(len(times))
    steps, always, last_run = [], math.ceil(ALWAYS_RUN * (len(times) - 1)), 0.0
    for i, t in enumerate(times[:-1]):
        low_noise = bool(t < generator.settings.flow.time_min)
        guidance = sample.guidance
        if low_noise:
            guidance = guidance_low(generator, sample)
        guidance = guidance if sample.guidance_min <= t <= sample.guidance_max else 1.0
        same = bool(steps) and (steps[-1].low_noise, steps[-1].guidance) == (low_noise, guidance)
        cached = bool(threshold) and same and i >= always and changes[i] - last_run <= threshold
        last_run = last_run if cached else changes[i]
        steps.append(Step(low_noise, guidance, bool(cached)))
    return steps
