"""The two compiled programs of sampling: `begin`, which runs once, and `solver_step`, which runs every step."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from sora_jax.config.schema import Settings
from sora_jax.core.mesh import RULES, spec
from sora_jax.core.patches import PatchBatch
from sora_jax.data.loader.conditioning_masks import conditioning_tasks
from sora_jax.diffusion.conditioning import freeze_conditioning, on_loop, renoised, start_from
from sora_jax.diffusion.flow import quantize_time, time_table
from sora_jax.diffusion.guidance import first_of_pairs, guided, in_pairs
from sora_jax.diffusion.noise import ClipNoise
from sora_jax.diffusion.solvers import Solver
from sora_jax.models.layers.params import bind
from sora_jax.models.video_model import VideoModel

GOLDEN_RATIO = 0.618  # of a loop, between the seams of two successive steps: the most even spread


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """The static arguments of the programs: a new value compiles anew.

    loop: latent frames of a looped video (see `on_loop`); 0: the video is no loop.
    clips: maximum number of clips in a row, whose times may differ if there are several.
    """

    settings: Settings
    solver: Solver
    loop: int = 0
    clips: int = 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepInputs:
    """The arrays that all steps of a run share.

    pairs: the rows (conditional, unconditional) of each row of videos, with noise in the place of patches.
    conditioning_mask: True: given, or padding, so that no step moves it; [B, N] bool.
    times: of the denoising schedule, falling; [steps + 1] float32, or of each patch [steps + 1, B, N, 1].
    """

    pairs: PatchBatch
    conditioning_mask: jax.Array
    times: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def begin(program: StepProgram, params: dict, batch: PatchBatch, noise: ClipNoise, time=1.0):
    """(rows in pairs for guidance with their text encoded, the solver's first state).

    A model trained with and without conditioning frames has none in the unconditional rows (config.masks.guided).
    Guidance then strengthens both; strengthened alone, the prompt would win over the frames.

    Args:
      batch: its text has two rows for each row of patches: the prompts and the negative prompts.
      time: the noise time of the first state, in (0, 1], a scalar or of each patch [B, N].
    """
    settings, solver = program.settings, program.solver
    model = bind(VideoModel, settings, params)
    pairs = jax.tree.map(in_pairs, batch.replace(text=None, text_segment_ids=None))
    if settings.masks.guided and {"text"} < conditioning_tasks(settings.masks).keys():
        conditional = jax.reshard(jnp.arange(len(pairs.conditioning_mask)) % 2 == 0, spec("batch"))
        pairs = pairs.replace(conditioning_mask=pairs.conditioning_mask & conditional[:, None])
    pairs = model.embed_text(pairs.replace(text=batch.text, text_segment_ids=batch.text_segment_ids))
    rows = jax.typeof(batch.conditioning_mask).sharding.spec[0]
    first = jax.reshard(noise.draw(batch.patches.shape), jax.P(rows, RULES["tokens"], None))
    x = start_from(first, batch, time=time, conditioning_time=settings.masks.noise)
    return pairs.replace(patches=in_pairs(first)), solver.start(x, noise)


@functools.partial(jax.jit, static_argnums=0, donate_argnames="state")
def solver_step(program: StepProgram, params: dict, inputs: StepInputs, state, i, guidance, moving=None):
    """(the solver's next state, the velocity it used, the clean data that this velocity predicts).

    A solver with several velocities a step returns the last one.

    Args:
      state: of the solver, donated.
      i: number of the step, a scalar; or one for each latent frame, [f], with a solver of SINGLE_STEP.
      guidance: scale, a scalar, [f], or of each patch [B, N, 1]; None: the conditional velocity alone, at half the
        cost.
      moving: the latent frames that take the step, [f] bool; None: all.
    """
    settings, loop, conditioning_mask = program.settings, program.loop, inputs.conditioning_mask
    model = bind(VideoModel, settings, params)
    rows = inputs.pairs if guidance is not None else jax.tree.map(first_of_pairs, inputs.pairs)
    count = i.size
    if i.ndim:
        i, guidance, moving = (
            None if v is None else _per_patch(v, conditioning_mask.shape[1]) for v in (i, guidance, moving)
        )
    # Unconditional rows without conditioning frames have these frames at the noise time of all others.
    noisy = (in_pairs(conditioning_mask) if guidance is not None else conditioning_mask) & ~rows.conditioning_mask

    def model_velocity(x, t):
        x = jnp.where(noisy[..., None], renoised(x, rows.patches, settings.masks.noise, t), x)
        time = quantize_time(t, settings.flow)
        frames = rows
        if inputs.times.ndim > 1:
            time = _of_clips(time, rows.segment_ids, program.clips)
        elif time.ndim:
            time = time[:, :: time.shape[1] // count, 0]
            frames = rows.replace(time_index=1 + rows.positions[..., 0])
        time = jnp.zeros_like(rows.segment_ids[:, :1], jnp.float32) + time
        table, time_index = time_table(frames, time, conditioning_time=settings.masks.noise)
        return model.velocity(frames, x, table, time_index)

    velocity_fn = on_loop(model_velocity, loop, _loop_turn(i, loop)) if loop else model_velocity
    velocity_fn = guided(velocity_fn, guidance) if guidance is not None else velocity_fn
    used = []

    def velocity(x, t):
        velocity = freeze_conditioning(velocity_fn, conditioning_mask)(x, t)
        used.append((velocity, x - t * velocity))
        return velocity

    frozen = conditioning_mask if moving is None else conditioning_mask | ~moving[..., 0]
    return _step(program.solver, velocity, frozen, state, inputs.times, i), *used[-1]


@functools.partial(jax.jit, static_argnums=0, donate_argnames="state")
def cached_step(solver: Solver, data, conditioning_mask, state, times, i):
    """The solver's next state, from the clean data [B, N, P] that an earlier step predicted; no model runs."""
    return _step(solver, lambda x, t: (x - data) / t, conditioning_mask, state, times, i)


def _step(solver, velocity_fn, frozen, state, times, i):
    """The solver's next state; frozen patches stay where they are, whatever the solver adds."""
    x, *rest = solver.step(velocity_fn, state, times, i)
    return jnp.where(frozen[..., None], state[0], x), *rest


def _per_patch(values, patches):
    """Values of latent frames, [f], for each of their patches, [1, N, 1]; the same on every chip."""
    return jnp.repeat(values, patches // len(values), total_repeat_length=patches)[None, :, None]


def _of_clips(values, segment_ids, clips):
    """The value that the patches of each clip have in common, [B, N, 1] -> [B, clips]; none is below 0."""
    values, segment_ids = jax.reshard(values, spec("batch . .")), jax.reshard(segment_ids, spec("batch ."))
    mine = segment_ids[:, :, None] == jnp.arange(1, clips + 1)
    return jnp.max(jnp.where(mine, values, 0.0), axis=1)


def _loop_turn(i, frames):
    """How far the loop is turned in step i, so that its seam lies between other frames in every step."""
    n = frames - 1
    return i * next(k for k in range(round(GOLDEN_RATIO * n), n + 1) if math.gcd(k, n) == 1) % n
