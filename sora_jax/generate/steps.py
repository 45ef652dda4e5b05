"""The programs of a sampler: what runs on the mesh before its first step, and in each one."""

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
from sora_jax.diffusion.solvers import Solver
from sora_jax.models.layers.params import bind
from sora_jax.models.video_model import VideoModel


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin(settings: Settings, solver: Solver, params: dict, batch: PatchBatch, key, first, time=1.0):
    """What the steps of a solver need: rows in pairs for guidance, their text encoded, and its first state.

    Args:
      batch: its text has two rows for each row of patches: the prompt and the negative prompt.
    Returns: pairs, with noise in the place of patches; the state. A model that has learned with and without is
      given nothing in the unconditional rows (config.masks.guided): guidance then strengthens what is given beside
      the prompt, which would win over it otherwise (docs/tasks.md).
    """
    model = bind(VideoModel, settings, params)
    pairs = jax.tree.map(in_pairs, batch.replace(text=None, text_segment_ids=None))
    if settings.masks.guided and {"text"} < conditioning_tasks(settings.masks).keys():
        conditional = jax.reshard(jnp.arange(len(pairs.conditioning_mask)) % 2 == 0, spec("batch"))
        pairs = pairs.replace(conditioning_mask=pairs.conditioning_mask & conditional[:, None])
    pairs = model.embed_text(pairs.replace(text=batch.text, text_segment_ids=batch.text_segment_ids))
    # One key a row: a video does not depend on what else is in its batch, or on the mesh.
    numbers = first + jnp.arange(len(batch.conditioning_mask))
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
    noise = jax.vmap(lambda key: jax.random.normal(key, batch.patches.shape[1:]))(keys)
    # As the batch lies: its rows over the mesh, or all of them on every chip.
    noise = jax.reshard(noise, jax.P(jax.typeof(batch.conditioning_mask).sharding.spec[0], RULES["tokens"], None))
    x = start_from(noise, batch, time=time, conditioning_time=settings.masks.noise)
    return pairs.replace(patches=in_pairs(noise)), solver.start(x, jax.vmap(jax.random.key_data)(keys))


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="loop", donate_argnames="state")
def solver_step(
    settings: Settings,
    solver: Solver,
    params: dict,
    pairs: PatchBatch,
    conditioning_mask,
    state,
    times,
    i,
    guidance,
    *,
    loop: int = 0,
    moving=None,
):
    """The state of the solver one step on, the velocity that it took, the last one if there are several, and the
    data that this says.

    Args:
      pairs, state: as `begin` makes them first.
      i: number of the step; or that of each frame of patches, [f], for a solver of SINGLE_STEP.
      guidance: its scale, or each frame's; None: the conditional velocity alone, at half of the cost.
      moving: which frames take the step, [f]; None: all that are not known.
      ring: frames of patches of a video that is a ring (see `on_loop`); 0: it is none.
    """
    model = bind(VideoModel, settings, params)
    rows = pairs if guidance is not None else jax.tree.map(first_of_pairs, pairs)
    count = i.size
    if i.ndim:
        i, guidance, moving = (
            None if v is None else _of_patches(v, conditioning_mask.shape[1]) for v in (i, guidance, moving)
        )
    lacking = (
        in_pairs(conditioning_mask) if guidance is not None else conditioning_mask
    ) & ~rows.conditioning_mask

    def velocity(x, t):
        x = jnp.where(lacking[..., None], renoised(x, rows.patches, settings.masks.noise, t), x)
        told = quantize_time(t, settings.flow)
        frames = rows
        if told.ndim:
            told = told[:, :: told.shape[1] // count, 0]
            frames = rows.replace(time_index=1 + rows.positions[..., 0])
        told = jnp.zeros_like(rows.segment_ids[:, :1], jnp.float32) + told
        table, time_index = time_table(frames, told, conditioning_time=settings.masks.noise)
        return model.velocity(frames, x, table, time_index)

    made = on_loop(velocity, loop, _turn(i, loop)) if loop else velocity
    made = guided(made, guidance) if guidance is not None else made
    found = []

    def held(x, t):
        velocity = freeze_conditioning(made, conditioning_mask)(x, t)
        found.append((velocity, x - t * velocity))
        return velocity

    stays = conditioning_mask if moving is None else conditioning_mask | ~moving[..., 0]
    return _stepped(solver, held, stays, state, times, i), *found[-1]


@functools.partial(jax.jit, static_argnums=0, donate_argnames="state")
def step_again(solver: Solver, data, conditioning_mask, state, times, i):
    """The state of the solver one step on, by the data [B, N, P] that a step before found; no model runs."""
    return _stepped(solver, lambda x, t: (x - data) / t, conditioning_mask, state, times, i)


def _stepped(solver, velocity, conditioning_mask, state, times, i):
    """Known patches stay where they are, whatever the solver adds."""
    x, *rest = solver.step(velocity, state, times, i)
    return jnp.where(conditioning_mask[..., None], state[0], x), *rest


def _of_patches(values, patches):
    """What frames have, [f], for each of their patches, [1, N, 1]; the same on every chip."""
    return jnp.repeat(values, patches // len(values), total_repeat_length=patches)[None, :, None]


def _turn(i, frames):
    """Of the ring in step i: every one in turn, each about a golden ratio of the ring from the one before."""
    n = frames - 1
    return i * next(k for k in range(round(0.618 * n), n + 1) if math.gcd(k, n) == 1) % n
