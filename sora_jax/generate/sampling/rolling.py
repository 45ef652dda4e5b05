"""Long videos by diffusion forcing: each latent frame is noisier than the one before it, and finished after it.

The window moves on as soon as its first unfinished frame is done; the others keep their state. So every frame is
made with the next ones in sight, while these are still noisy, and no border of windows lies between two frames.
Source: Chen et al. 2024 (arXiv 2407.01392), sampling with a matrix of times.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sora_jax.config.schema import SampleSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.patches import patchify, unpatchify
from sora_jax.diffusion.solvers import SINGLE_STEP
from sora_jax.generate.generator import Generator
from sora_jax.generate.inputs.conditioning_images import ConditioningFrames
from sora_jax.generate.sampling.clips import Clip, Noise, make_batch, noise_of, one_a_row
from sora_jax.generate.sampling.pipeline import SOLVERS
from sora_jax.generate.sampling.schedule import denoising_schedule
from sora_jax.generate.sampling.steps import StepInputs, StepProgram, begin, solver_step


@dataclasses.dataclass(frozen=True)
class RollingSchedule:
    """Which step each latent frame of a rolling window is at.

    lag: steps that a frame is behind the one before it; ahead: frames that a window leaves unfinished.
    """

    lag: int
    ahead: int

    @property
    def steps(self) -> int:
        """Steps that each frame takes."""
        return self.lag * (self.ahead + 1)

    def step_table(self, frames: int, given: int, unfinished: int) -> np.ndarray:
        """The step that each frame is at before each run of the model and after the last one, [runs + 1, frames].

        Args:
          given: conditioning frames at the beginning; they are always at the last step.
          unfinished: frames after them that the window before has left unfinished.
        """
        place = np.arange(frames - given)
        starts = np.where(place < unfinished, self.steps - self.lag * (place + 1), 0)
        last = frames - given - self.ahead - 1  # the last frame that is finished
        ends = self.steps + np.minimum(0, self.lag * (last - place))
        runs = int(np.max(self.steps + self.lag * (last - place) - starts))
        at = self.steps + self.lag * (last - place) - np.arange(runs, -1, -1)[:, None]
        return np.concatenate([np.full((runs + 1, given), self.steps), np.clip(at, starts, ends)], axis=1)


@dataclasses.dataclass(frozen=True)
class RollingWindow:
    """A window's schedule.

    unfinished: frames that the window before has left unfinished, [r, h, w, C]; r is 0 or schedule.ahead.
    """

    schedule: RollingSchedule
    unfinished: np.ndarray


def rolling_schedule(frames: int, context: int, steps: int) -> RollingSchedule:
    """The schedule of windows of latent frames that begin with `context` given ones, with about `steps` steps."""
    new = frames - context
    return RollingSchedule(max(1, round(steps / new)), new - 1)


def check_rolling(settings: Settings, sample: SampleSettings):
    """Raise InputError for settings with which frames can't be at different steps."""
    if SOLVERS[sample.solver] not in SINGLE_STEP:
        known = ", ".join(name for name, solver in SOLVERS.items() if solver in SINGLE_STEP)
        raise InputError(f"--rolling: the solver {sample.solver} uses earlier steps; --solver can be {known}")
    if sample.step_cache_threshold:
        raise InputError(
            f"--step-cache-threshold={sample.step_cache_threshold:g}: --rolling has no step cache; leave one out"
        )
    if settings.flow.time_min:
        raise InputError("--rolling: frames at different times would need both experts of this model at once")


def sample_rolling_latents(
    generator: Generator,
    prompts: Sequence[str],
    sample: SampleSettings,
    noise: Noise,
    window: RollingWindow,
    *,
    negative_prompt: str = "",
    conditioning: ConditioningFrames | None = None,
    on_step: Callable[[float, jax.Array], None] = lambda time, velocity: None,
) -> np.ndarray:
    """Latents of a window for each prompt, the last `window.schedule.ahead` frames of them unfinished.

    Args:
      conditioning: its given frames begin the window. The others: as `sample_latents` takes them.
    Returns: [B, f, h, w, C] float32.
    """
    settings, rolling = generator.settings, window.schedule
    numbered = [dataclasses.replace(noise, first=noise.first + n) for n in range(len(prompts))]
    clips = [
        Clip(prompt, sample, own, negative_prompt, conditioning)
        for prompt, own in zip(prompts, numbered, strict=True)
    ]
    grid = clips[0].grid(generator)
    N = int(np.prod(grid))
    layout = one_a_row(len(clips), N)
    batch, _ = make_batch(generator, clips, layout)
    given = int(conditioning.conditioning_mask.all(axis=(1, 2)).sum()) if conditioning else 0
    schedule = denoising_schedule(generator, dataclasses.replace(sample, steps=rolling.steps))
    if len(schedule.steps) < rolling.steps:
        raise InputError(
            f"--rolling: neighbouring times of {rolling.steps} steps are equal; lower --shift or --steps"
        )
    scales = np.array([*(step.guidance for step in schedule.steps), 1.0], np.float32)
    program = StepProgram(settings, SOLVERS[sample.solver])
    drawn = noise_of(clips, layout, [N] * len(clips), lambda noise: noise.rolling_key)
    pairs, state = begin(program, generator.params, batch, drawn)
    state = _with_unfinished(state, window.unfinished, given, grid, settings.transformer.patch)
    # Finished frames keep the final time.
    inputs = StepInputs(pairs, batch.conditioning_mask, np.append(schedule.times, schedule.times[-1]))
    for at, after in itertools.pairwise(rolling.step_table(grid[0], given, len(window.unfinished))):
        guidance = jnp.asarray(scales[at]) if sample.guidance != 1 else None
        moving = jnp.asarray(after > at)
        state, velocity, _ = solver_step(
            program, generator.params, inputs, state, jnp.asarray(at, jnp.int32), guidance, moving
        )
        jax.block_until_ready(state)
        on_step(float(inputs.times[at.min()]), velocity)
    latents = jnp.where(batch.conditioning_mask[..., None], batch.patches, state[0])
    return unpatchify(multihost_utils.process_allgather(latents, tiled=True), grid, settings.transformer.patch)


def _with_unfinished(state, unfinished, given, grid, patch):
    """The solver's first state, with unfinished frames after the given ones."""
    if not len(unfinished):
        return state
    x, *rest = state
    count = int(np.prod(grid[1:]))
    left = np.zeros(x.shape, np.float32)
    left[:, given * count :][:, : len(unfinished) * count] = patchify(unfinished[None], patch)
    mine = np.isin(np.arange(x.shape[1]) // count, given + np.arange(len(unfinished)))
    x = np.where(mine[:, None], left, multihost_utils.process_allgather(x, tiled=True))
    return jax.device_put(x, state[0].sharding), *rest
