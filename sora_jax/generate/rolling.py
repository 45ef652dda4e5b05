"""Long videos by diffusion forcing: each latent frame is noisier than the one before it, and finished after it.

A window moves on as soon as its first unfinished frame is done; the others go on where they are. So a frame is
made with those after it in sight, while they are still noise, and no border of windows lies between them. Each
frame takes as many steps as in a window whose frames are finished together, and costs as much.
Source: Chen et al. 2024 (arXiv 2407.01392), sampling with a matrix of times.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.core.patches import patchify, unpatchify
from sora_jax.diffusion.solvers import SINGLE_STEP
from sora_jax.generate.conditioning_images import Given
from sora_jax.generate.pipeline import SOLVERS, Generator, open_batch, plan_steps
from sora_jax.generate.steps import begin, solver_step


@dataclasses.dataclass(frozen=True)
class Clock:
    """Which step each frame is at.

    lag: steps that a frame is behind the one before it; ahead: frames that a window leaves unfinished.
    """

    lag: int
    ahead: int

    @property
    def steps(self) -> int:
        """That a frame takes."""
        return self.lag * (self.ahead + 1)

    def course(self, frames: int, known: int, resting: int) -> np.ndarray:
        """The step that each frame is at, [ticks + 1, frames]: before each tick, and after the last one.

        Args:
          known: frames at the beginning that are given; they are at the end all the time.
          resting: frames after them that an earlier window has left unfinished.
        """
        place = np.arange(frames - known)
        starts = np.where(place < resting, self.steps - self.lag * (place + 1), 0)
        last = frames - known - self.ahead - 1  # the last one that is finished
        ends = self.steps + np.minimum(0, self.lag * (last - place))
        ticks = int(np.max(self.steps + self.lag * (last - place) - starts))
        at = self.steps + self.lag * (last - place) - np.arange(ticks, -1, -1)[:, None]
        return np.concatenate([np.full((ticks + 1, known), self.steps), np.clip(at, starts, ends)], axis=1)


def clock_of(frames: int, context: int, steps: int) -> Clock:
    """That of windows of latent frames, of which so many are given; with about as many steps as are wanted."""
    moving = frames - context
    return Clock(max(1, round(steps / moving)), moving - 1)


def check_rolling(generator_settings, sample: SampleSettings):
    """Raise InputError for settings with which frames can't be at different steps."""
    if SOLVERS[sample.solver] not in SINGLE_STEP:
        known = ", ".join(name for name, solver in SOLVERS.items() if solver in SINGLE_STEP)
        raise InputError(
            f"--rolling: the solver {sample.solver} remembers the step before; --solver can be {known}"
        )
    if sample.skip:
        raise InputError(f"--skip={sample.skip:g}: --rolling skips no step")
    if generator_settings.flow.time_min:
        raise InputError("--rolling: frames at different times would need both experts of this model at once")


def roll(
    generator: Generator,
    prompts: list[str],
    sample: SampleSettings,
    clock: Clock,
    rest: np.ndarray,
    *,
    seed: int,
    first: int = 0,
    window: int = 0,
    negative_prompt: str = "",
    given: Given | None = None,
    advance: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Latents of a window for each prompt, the last `clock.ahead` frames of them unfinished.

    Args:
      rest: what the window before left unfinished, [r, h, w, C], after what is given; r is clock.ahead or 0.
      given: its known frames begin the window. The others: as `sample_latents` takes them.
    Returns: [B, f, h, w, C] float32.
    """
    settings, patch = generator.settings, generator.settings.transformer.patch
    batch, grid, _ = open_batch(generator, prompts, sample, negative_prompt, given)
    known = int(given.conditioning_mask.all(axis=(1, 2)).sum()) if given else 0
    times, steps = plan_steps(generator, dataclasses.replace(sample, steps=clock.steps))
    # What is finished is at the time after the last step, and stays there.
    times, scales = np.append(times, times[-1]), np.array([*(step.guidance for step in steps), 1.0], np.float32)
    course = clock.course(grid[0], known, len(rest))
    solver, key = SOLVERS[sample.solver], jax.random.fold_in(jax.random.key(seed), window)
    pairs, (x, *more) = begin(settings, solver, generator.params, batch, key, jnp.int32(first))
    if len(rest):
        count = int(np.prod(grid[1:]))
        left = np.zeros((len(prompts), *x.shape[1:]), np.float32)
        left[:, known * count :][:, : len(rest) * count] = patchify(rest[None], patch)
        resting = np.isin(np.arange(x.shape[1]) // count, known + np.arange(len(rest)))
        x = jax.device_put(
            np.where(resting[:, None], left, multihost_utils.process_allgather(x, tiled=True)), x.sharding
        )
    state = (x, *more)
    for at, after in itertools.pairwise(course):
        state, _, _ = solver_step(
            settings,
            solver,
            generator.params,
            pairs,
            batch.conditioning_mask,
            state,
            times,
            jnp.asarray(at, jnp.int32),
            jnp.asarray(scales[at]) if sample.guidance != 1 else None,
            moving=jnp.asarray(after > at),
        )
        jax.block_until_ready(state)
        advance()
    made = jnp.where(batch.conditioning_mask[..., None], batch.patches, state[0])
    return unpatchify(multihost_utils.process_allgather(made, tiled=True), grid, patch)
