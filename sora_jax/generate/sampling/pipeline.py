"""From prompts to latents: encode the text, draw the noise, run the solver."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import num_shards, spec
from sora_jax.core.patches import PatchBatch, grid_positions, patch_grid, unpatchify
from sora_jax.core.random_keys import Purpose, purpose_key, seed_key
from sora_jax.diffusion.solvers import ancestral, dpm, euler, heun, unipc
from sora_jax.generate.generator import Generator, latent_shape
from sora_jax.generate.inputs.conditioning_images import ConditioningFrames, put_conditioning
from sora_jax.generate.sampling.schedule import DenoisingSchedule, denoising_schedule
from sora_jax.generate.sampling.steps import StepInputs, StepProgram, begin, cached_step, solver_step

SOLVERS = {"euler": euler, "heun": heun, "ancestral": ancestral, "dpm": dpm, "unipc": unipc}
MAX_PROMPT = 10_000  # characters; far more than any encoder takes, so a mistake such as a whole file


@dataclasses.dataclass(frozen=True)
class Noise:
    """Which noise the videos of a run begin with: prompt n of a run has the seed's noise number first + n.

    seed: from 0 to 2^64 - 1.
    window: of a long video; each has noise of its own.
    """

    seed: int
    first: int = 0
    window: int = 0

    @property
    def key(self) -> jax.Array:
        """The key of a window that is sampled at once; the first window's is the seed's own."""
        return self.rolling_key if self.window else seed_key(self.seed)

    @property
    def rolling_key(self) -> jax.Array:
        """The key of a rolling window."""
        return purpose_key(seed_key(self.seed), Purpose.WINDOW, self.window)


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
    """Latents of one video for each prompt.

    Args:
      prompts: as many as `batch_size` says, or a multiple.
      conditioning: the same for every video; a model with channels for images needs it.
      loop: latent frame 1 follows the last one; latent frame 0 is unused.
      on_step: called after each step with its time and the velocity [B, N, P] that it used, None if it was cached.
    Returns: [B, f, h, w, C] float32, normalised as the autoencoder's latents; given latents come back unchanged.
    """
    check_prompts(prompts, negative_prompt)
    strength = conditioning.strength if conditioning else 1.0
    if not strength:
        return np.broadcast_to(conditioning.latents, (len(prompts), *conditioning.latents.shape))
    batch, grid, halves_apart = make_batch(generator, prompts, sample, negative_prompt, conditioning)
    schedule = denoising_schedule(generator, sample, strength=strength)
    program = StepProgram(generator.settings, SOLVERS[sample.solver], grid[0] if loop else 0)
    pairs, state = begin(
        program, generator.params, batch, noise.key, jnp.int32(noise.first), jnp.float32(schedule.times[0])
    )
    inputs = StepInputs(pairs, batch.conditioning_mask, schedule.times)
    state = _run_steps(generator, program, schedule, inputs, state, halves_apart, on_step)
    latents = jnp.where(batch.conditioning_mask[..., None], batch.patches, state[0])
    return unpatchify(
        multihost_utils.process_allgather(latents, tiled=True), grid, generator.settings.transformer.patch
    )


def _run_steps(generator, program, schedule: DenoisingSchedule, inputs, state, halves_apart, on_step):
    """The solver's state after the last step."""
    data = None
    for i, step in enumerate(schedule.steps):
        if step.cached:
            velocity = None
            state = cached_step(program.solver, data, inputs.conditioning_mask, state, inputs.times, jnp.int32(i))
        else:
            params = generator.low_noise[0] if step.low_noise else generator.params
            # Where the halves of guidance lie on chips of their own, leaving one out saves nothing.
            guidance = jnp.float32(step.guidance) if halves_apart or step.guidance != 1 else None
            state, velocity, data = solver_step(program, params, inputs, state, jnp.int32(i), guidance)
        jax.block_until_ready(state)
        on_step(schedule.times[i], velocity)
    return state


def make_batch(
    generator: Generator,
    prompts: Sequence[str],
    sample: SampleSettings,
    negative_prompt: str,
    conditioning: ConditioningFrames | None,
) -> tuple[PatchBatch, tuple[int, int, int], bool]:
    """A row of empty patches for each prompt, with conditioning frames and text, on the mesh.

    Returns: (the batch, with two rows of text for each row of patches, as `begin` takes it; the grid of patches;
      whether the two halves of guidance lie on parts of the mesh of their own).
    """
    settings = generator.settings
    patch, C = settings.transformer.patch, settings.transformer.channels
    grid = patch_grid(latent_shape(settings, sample), patch)
    N, B = int(np.prod(grid)), len(prompts)
    text, text_segment_ids = tokenize(generator, [p for prompt in prompts for p in (prompt, negative_prompt)])
    batch = PatchBatch(
        patches=np.zeros((B, N, C * int(np.prod(patch))), np.float32),
        positions=np.broadcast_to(grid_positions(grid), (B, N, 3)),
        segment_ids=np.ones((B, N), np.int32),
        conditioning_mask=np.zeros((B, N), bool),
        text=text,
        text_segment_ids=text_segment_ids,
    )
    if conditioning is not None:
        batch = put_conditioning(batch, conditioning, patch)
    # Fewer videos than parts of the mesh: every part holds all of them, and one half of each pair.
    halves_apart = B % num_shards("batch", jax.sharding.get_mesh().shape) != 0

    def put(x):
        rows = "." if halves_apart and len(x) == B else "batch"
        return jax.device_put(x, spec(rows + " ." * (x.ndim - 1)))

    return jax.tree.map(put, batch), grid, halves_apart


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


def tokenize(generator: Generator, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, segment ids) of prompts, both [B, S] int32; tokens beyond the model's limit are cut."""
    limit = generator.settings.text.max_tokens
    tokens = np.zeros((len(prompts), limit), np.int32)
    segment_ids = np.zeros((len(prompts), limit), np.int32)
    for row, prompt in enumerate(prompts):
        ids = generator.tokenizer.encode(prompt, limit)
        tokens[row, : len(ids)] = ids
        segment_ids[row, : limit if generator.settings.text.padded else len(ids)] = 1
    return tokens, segment_ids
