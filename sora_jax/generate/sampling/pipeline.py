"""From prompts to latents: encode the text, draw the noise, run the solver."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import num_shards, spec
from sora_jax.core.patches import unpatchify
from sora_jax.diffusion.solvers import ancestral, dpm, euler, heun, unipc
from sora_jax.generate.generator import Generator
from sora_jax.generate.inputs.conditioning_images import ConditioningFrames
from sora_jax.generate.sampling.clips import (
    Clip,
    Layout,
    Noise,
    make_batch,
    noise_of,
    of_patches,
    one_a_row,
)
from sora_jax.generate.sampling.steps import StepInputs, StepProgram, begin, cached_step, solver_step

SOLVERS = {"euler": euler, "heun": heun, "ancestral": ancestral, "dpm": dpm, "unipc": unipc}
MAX_PROMPT = 10_000  # characters; far more than any encoder takes, so a mistake such as a whole file


def sample_latents(
    generator: Generator,
    prompts: Sequence[str],
    sample: SampleSettings,
    noise: Noise,
    *,
    negative_prompt: str = "",
    conditioning: ConditioningFrames | None = None,
    loop: bool = False,
    on_step: Callable[[float, jax.Array | None], None] = lambda time, velocity: None,
) -> np.ndarray:
    """Latents of one video for each prompt, all of one size.

    Args:
      prompts: as many as `batch_size` says, or a multiple.
      conditioning: the same for every video; a model with channels for images needs it.
      loop: latent frame 1 follows the last one; latent frame 0 is unused.
      on_step: called after each step with its time and the velocity [B, N, P] that it used, None if it was cached.
    Returns: [B, f, h, w, C] float32, normalised as the autoencoder's latents; given latents come back unchanged.
    """
    check_prompts(prompts, negative_prompt)
    clips = [
        Clip(
            prompt, sample, dataclasses.replace(noise, first=noise.first + n), negative_prompt, conditioning, loop
        )
        for n, prompt in enumerate(prompts)
    ]
    layout = one_a_row(len(clips), int(np.prod(clips[0].grid(generator))))
    return np.stack(sample_clips(generator, clips, layout, on_step))


def sample_clips(
    generator: Generator,
    clips: Sequence[Clip],
    layout: Layout,
    on_step: Callable[[float, jax.Array | None], None] = lambda time, velocity: None,
    on_prediction: Callable[[Callable[[], list[np.ndarray]]], None] = lambda latents: None,
) -> list[np.ndarray]:
    """Latents of clips, by one run of the solver for all of them.

    Args:
      clips: in one run: the same solver, and as many steps, of which the same are cached or of the second expert.
        In a packed layout none loops, and their sizes, times and guidance may differ.
      on_step: as `sample_latents` takes it; in a packed layout the time is the first clip's.
      on_prediction: called after each step with a function: the clips' latents as the step predicts them.
    Returns: [f, h, w, C] float32 of each clip.
    """
    if not clips[0].strength:
        return [clip.conditioning.latents for clip in clips]
    batch, halves_apart = make_batch(generator, clips, layout)
    grids = [clip.grid(generator) for clip in clips]
    sizes = [int(np.prod(grid)) for grid in grids]
    schedules = [clip.schedule(generator) for clip in clips]
    program = StepProgram(
        generator.settings,
        SOLVERS[clips[0].settings.solver],
        grids[0][0] if clips[0].loop else 0,
        layout.slots,
    )
    frozen, first, times = batch.conditioning_mask, jnp.float32(schedules[0].times[0]), schedules[0].times
    if layout.packed:
        times = put_patches(of_patches([schedule.times for schedule in schedules], layout, sizes))
        frozen, first = frozen | (batch.segment_ids == 0), times[0, ..., 0]
    pairs, state = begin(program, generator.params, batch, noise_of(clips, layout, sizes), first)
    inputs = StepInputs(pairs, frozen, times)

    def latents_of(patches: jax.Array) -> list[np.ndarray]:
        latents = jnp.where(batch.conditioning_mask[..., None], batch.patches, patches)
        rows, patch = multihost_utils.process_allgather(latents, tiled=True), generator.settings.transformer.patch
        found = {n: rows[row, start : start + sizes[n]] for n, row, _, start in layout.places(sizes)}
        return [unpatchify(found[n], grid, patch) for n, grid in enumerate(grids)]

    data = None
    for i, step in enumerate(schedules[0].steps):
        if step.cached:
            velocity = None
            state = cached_step(program.solver, data, inputs.conditioning_mask, state, inputs.times, jnp.int32(i))
        else:
            params = generator.low_noise[0] if step.low_noise else generator.params
            scales = [schedule.steps[i].guidance for schedule in schedules]
            guidance = None
            # Where the halves of guidance lie on chips of their own, leaving one out saves nothing.
            if halves_apart or set(scales) != {1.0}:
                guidance = jnp.float32(scales[0])
                if layout.packed:
                    guidance = put_patches(of_patches(np.reshape(scales, (-1, 1)), layout, sizes))[0]
            state, velocity, data = solver_step(program, params, inputs, state, jnp.int32(i), guidance)
        jax.block_until_ready(state)
        on_step(float(schedules[0].times[i]), velocity)
        on_prediction(functools.partial(latents_of, data))
    return latents_of(state[0])


def put_patches(x: np.ndarray) -> jax.Array:
    """Values of patches, [T, B, N, 1], on the mesh as the patches are."""
    return jax.device_put(x, spec(". batch tokens ."))


def batch_size(prompts: int, guidance: float) -> int:
    """How many videos the mesh samples at once, of so many that are wanted.

    One on each part of the mesh that holds whole rows. If half as many are enough, one on two parts, which take
    the conditional and the unconditional half of each guided step.
    """
    parts = num_shards("batch", jax.sharding.get_mesh().shape)
    return parts // 2 if guidance != 1 and parts % 2 == 0 and prompts <= parts // 2 else parts


def fill_batch(prompts: Sequence[str], guidance: float) -> list[str]:
    """As many of the prompts as the mesh samples at once; if there are fewer, the last one fills up the batch."""
    rows = num_shards("batch", jax.sharding.get_mesh().shape)
    prompts = list(prompts[:rows])
    return prompts + [prompts[-1]] * (batch_size(len(prompts), guidance) - len(prompts))


def check_prompts(prompts: Sequence[str], negative_prompt: str = ""):
    """Raise InputError for a prompt that is empty, not Unicode, or so long that it must be a mistake."""
    if any(not prompt.strip() for prompt in prompts):
        raise InputError("--prompt: is empty; say what the video shows")
    for flag, prompt in [*(("prompt", prompt) for prompt in prompts), ("negative-prompt", negative_prompt)]:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"--{flag}: {prompt[:40]!r}: character {error.start + 1} is not text") from None
        if len(prompt) > MAX_PROMPT:
            raise InputError(f"--{flag}: {len(prompt):,} characters; the limit is {MAX_PROMPT:,}")
