"""From prompts to videos: encode the text, solve the flow, decode as a stream, write.

`load_generator` reads a training run's workdir, which is self-contained: checkpoint, autoencoder, tokenizer.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sora_jax.checkpoint.frozen_params import LOW_NOISE, load_frozen_params, restore_computing, restore_model
from sora_jax.checkpoint.meta import check_models, read_meta
from sora_jax.checkpoint.model_folder import load_model
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.config.schema import AutoencoderSettings, SampleSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import num_shards, spec
from sora_jax.core.patches import PatchBatch, grid_positions, patch_grid, unpatchify
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.diffusion.flow import shift_of
from sora_jax.diffusion.solvers import ancestral, dpm, euler, heun, time_grid, unipc
from sora_jax.generate.conditioning_images import Given, put_conditioning, video_size
from sora_jax.generate.schedule import FILE, Drift, Meter, Step, read_drift, schedule
from sora_jax.generate.steps import begin, solver_step, step_again
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.video_model import join

SOLVERS = {"euler": euler, "heun": heun, "ancestral": ancestral, "dpm": dpm, "unipc": unipc}
LONGEST_PROMPT = 10_000  # characters; far more than any encoder takes, so a mistake such as a whole file


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained model and what it needs: settings, its parameters, the autoencoder's, the tokenizer.

    low: (parameters, settings) of the expert for the times below the settings' flow.time_min, if there is one.
    drift: of these parameters, if it has been measured.
    """

    settings: Settings
    params: dict
    autoencoder: AutoencoderSettings
    autoencoder_params: dict
    tokenizer: Tokenizer
    step: int  # updates that the parameters have had
    low: tuple[dict, Settings] | None = None
    drift: Drift | None = None


def read_run(workdir: pathlib.Path) -> tuple[pathlib.Path, int, Settings]:
    """The folder of a workdir's checkpoints, the newest one's step, and the settings it was made with.

    Raises: InputError if there is no checkpoint, or it is none of a transformer.
    """
    folder, step = find_checkpoint(workdir)
    settings, _ = read_meta(folder, step)
    if settings.objective != "flow":
        raise InputError(f"{workdir}: its checkpoint is an {settings.objective}; `sample` needs a transformer's")
    return folder, step, settings


def load_generator(workdir: pathlib.Path, *, dtype: str | None = None) -> Generator:
    """The averaged parameters of a workdir's newest checkpoint, laid out on the current mesh.

    Args:
      dtype: to compute in; None: that of config.sample, or else of each model.
    Raises: InputError if there is no checkpoint, it is none of a transformer, or a part of it is missing.
    """
    workdir = pathlib.Path(workdir)
    folder, step, settings = read_run(workdir)
    if settings.flow.time_max < 1:
        raise InputError(
            f"{workdir}: an expert for times up to {settings.flow.time_max}; sample from the workdir around it"
        )
    autoencoder, autoencoder_params = load_model(workdir / "autoencoder", Autoencoder, AutoencoderSettings)
    if dtype := dtype or settings.sample.dtype:
        settings, autoencoder = computed_in(settings, dtype), dataclasses.replace(autoencoder, dtype=dtype)
    params = restore_model(folder, step, settings)
    low = load_low_noise(workdir / LOW_NOISE, settings, params) if settings.flow.time_min else None
    tokenizer = Tokenizer(workdir / "tokenizer.model")
    drift = read_drift(workdir / FILE) if (workdir / FILE).is_file() else None
    drift = drift if drift and drift.step == step else None  # that of an earlier step is none of this one's
    return Generator(settings, params, autoencoder, autoencoder_params, tokenizer, step, low, drift)


def computed_in(settings: Settings, dtype: str) -> Settings:
    """The settings of models that compute in another type."""
    parts = {name: getattr(settings, name) for name in ("text", "image", "transformer")}
    return dataclasses.replace(
        settings, **{name: dataclasses.replace(part, dtype=dtype) for name, part in parts.items()}
    )


def retyped(generator: Generator, dtype: str) -> Generator:
    """The same models, computing in another type; "" changes nothing."""
    if not dtype:
        return generator
    return dataclasses.replace(
        generator,
        settings=computed_in(generator.settings, dtype),
        autoencoder=dataclasses.replace(generator.autoencoder, dtype=dtype),
    )


def load_low_noise(workdir: pathlib.Path, settings: Settings, params: dict) -> tuple[dict, Settings]:
    """The other expert of a model whose settings and parameters these are.

    Raises: InputError if it is not there, is another model, or is not for the times below.
    """
    if not workdir.is_dir():
        raise InputError(
            f"{workdir}: not there; it is the workdir of the expert for times below {settings.flow.time_min}, "
            f"without which this one makes no video: train it there, or link the one that `convert` made"
        )
    folder, step, low = read_run(workdir)
    check_models(low, settings, str(workdir))
    if low.flow.time_max != settings.flow.time_min:
        raise InputError(
            f"{workdir}: is for times up to config.flow.time_max={low.flow.time_max}, "
            f"the expert above it for those from {settings.flow.time_min}"
        )
    low = dataclasses.replace(low, transformer=settings.transformer)  # the same but for the type, perhaps
    return join(restore_computing(folder, step, low), load_frozen_params(low, have=params)), low


def latent_shape(settings: Settings, sample: SampleSettings) -> tuple[int, int, int]:
    """(frames, rows, columns) of the latents of a video of that size and length.

    Raises: InputError if the model can't make it; names the nearest that it can.
    """
    stride, temporal = settings.autoencoder.spatial_stride, settings.autoencoder.temporal_stride
    patch = settings.transformer.patch
    size = video_size(sample)
    for side, p, name in zip(size, patch[1:], ("height", "width"), strict=True):
        multiple = stride * p
        if side % multiple:
            lower = max(side // multiple, 1) * multiple
            raise InputError(
                f"--size={sample.size}: the {name} {side} is no multiple of {multiple};"
                f" the nearest are {lower} and {lower + multiple}"
            )
    if sample.frames < 1 or (sample.frames - 1) % temporal:
        lower = max(sample.frames - 1, 0) // temporal * temporal + 1
        raise InputError(
            f"--frames={sample.frames}: must be {temporal} n + 1; the nearest are {lower} and {lower + temporal}"
        )
    return (sample.frames - 1) // temporal + 1, size[0] // stride, size[1] // stride


def check_prompts(prompts: list[str], negative_prompt: str = ""):
    """Raise InputError for a prompt that is empty, or so long that it must be a mistake."""
    if any(not prompt.strip() for prompt in prompts):
        raise InputError("--prompt: is empty; say what the video shows")
    for flag, prompt in [*(("prompt", prompt) for prompt in prompts), ("negative-prompt", negative_prompt)]:
        if len(prompt) > LONGEST_PROMPT:
            raise InputError(f"--{flag}: {len(prompt):,} characters; at most {LONGEST_PROMPT:,} are taken")


def tokenize(generator: Generator, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts -> tokens and their segments (1, padding 0), both [B, S] int32; what is too long is cut."""
    limit = generator.settings.text.max_tokens
    tokens = np.zeros((len(prompts), limit), np.int32)
    segment_ids = np.zeros((len(prompts), limit), np.int32)
    for row, prompt in enumerate(prompts):
        ids = generator.tokenizer.encode(prompt, limit)
        tokens[row, : len(ids)] = ids
        segment_ids[row, : limit if generator.settings.text.padded else len(ids)] = 1
    return tokens, segment_ids


def rows_at_once(prompts: int, guidance: float) -> int:
    """How many videos the mesh makes at once of so many that are wanted.

    One on each part of the mesh that holds whole rows; or, if half as many are enough, one on two of them, which
    take the conditional and the unconditional half of each guided step.
    """
    parts = num_shards("batch", jax.sharding.get_mesh().shape)
    return parts // 2 if guidance != 1 and parts % 2 == 0 and prompts <= parts // 2 else parts


def plan_steps(
    generator: Generator, sample: SampleSettings, *, strength: float = 1.0, low_guidance: float = 0.0
) -> tuple[np.ndarray, list[Step]]:
    """The times of a run of this share, above 0, of the solver's steps, and what each of them does.

    Raises: InputError for a video that the model can't make, and as `schedule` does.
    """
    settings = generator.settings
    grid = patch_grid(latent_shape(settings, sample), settings.transformer.patch)
    shift = sample.shift or settings.flow.shift_scale * float(shift_of(int(np.prod(grid)), grid[0]))
    whole = settings.flow.time_quantization
    end = min(1 / whole, strength) if whole else 0.0
    times = np.asarray(time_grid(max(1, round(sample.steps * strength)), shift, strength, end=end))
    if generator.low:
        low_guidance = low_guidance or generator.low[1].sample.guidance
    return times, schedule(settings, sample, times, generator.drift, low_guidance=low_guidance)


def sample_latents(
    generator: Generator,
    prompts: list[str],
    sample: SampleSettings,
    *,
    seed: int,
    first: int = 0,
    negative_prompt: str = "",
    low_guidance: float = 0.0,
    given: Given | None = None,
    loop: bool = False,
    window: int = 0,
    meter: Meter | None = None,
    advance: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Latents of one video for each prompt.

    Args:
      prompts: as many as `rows_at_once` says, or a multiple.
      first: number of the first prompt: prompt n has the seed's n-th noise, whatever is sampled along with it.
      low_guidance: for the expert of low noise; 0: its own settings'.
      given: what every video shows; a model with channels for images must have them.
      ring: after the last latent frame comes the one with number 1; that with number 0 is of no use.
      window: of a video made window after window; each has noise of its own.
      meter: measures the drift, of a run that skips no step.
      advance: called after each step of the solver.
    Returns: [B, f, h, w, C] float32, normalised as the autoencoder's latents are; what was known as it was given.
    """
    check_prompts(prompts, negative_prompt)
    settings = generator.settings
    batch, grid, split = open_batch(generator, prompts, sample, negative_prompt, given)
    B = len(prompts)
    strength = given.strength if given is not None else 1.0
    if not strength:
        return np.broadcast_to(given.latents, (B, *given.latents.shape))
    times, steps = plan_steps(generator, sample, strength=strength, low_guidance=low_guidance)
    solver, key = SOLVERS[sample.solver], jax.random.key(seed)
    key = jax.random.fold_in(key, window) if window else key
    pairs, state = begin(settings, solver, generator.params, batch, key, jnp.int32(first), jnp.float32(times[0]))
    data = None
    for i, step in enumerate(steps):
        if step.skipped:
            state = step_again(solver, data, batch.conditioning_mask, state, times, jnp.int32(i))
        else:
            state, velocity, data = solver_step(
                settings,
                solver,
                generator.low[0] if step.low else generator.params,
                pairs,
                batch.conditioning_mask,
                state,
                times,
                jnp.int32(i),
                jnp.float32(step.guidance) if split or step.guidance != 1 else None,
                loop=grid[0] if loop else 0,
            )
            if meter:
                meter(times[i], velocity)
        jax.block_until_ready(state)
        advance()
    made = jnp.where(batch.conditioning_mask[..., None], batch.patches, state[0])
    return unpatchify(multihost_utils.process_allgather(made, tiled=True), grid, settings.transformer.patch)


def open_batch(
    generator: Generator, prompts: list[str], sample: SampleSettings, negative_prompt: str, given: Given | None
) -> tuple[PatchBatch, tuple[int, int, int], bool]:
    """What a solver begins with: a row of patches for each prompt, and their text, on the mesh.

    Returns: (the batch, with two rows of text for each row of patches, as `begin` takes it; the grid of patches;
      whether the two halves of guidance lie on parts of the mesh of their own).
    """
    settings = generator.settings
    patch, C = settings.transformer.patch, settings.transformer.channels
    grid = patch_grid(latent_shape(settings, sample), patch)
    N, B = int(np.prod(grid)), len(prompts)
    both, both_segments = tokenize(generator, [p for prompt in prompts for p in (prompt, negative_prompt)])
    batch = PatchBatch(
        patches=np.zeros((B, N, C * int(np.prod(patch))), np.float32),
        positions=np.broadcast_to(grid_positions(grid), (B, N, 3)),
        segment_ids=np.ones((B, N), np.int32),
        conditioning_mask=np.zeros((B, N), bool),
        text=both,
        text_segment_ids=both_segments,
    )
    if given is not None:
        batch = put_conditioning(batch, given, patch)
    # Of fewer videos than parts of the mesh every part holds all, and of each pair one half is its own.
    split = B % num_shards("batch", jax.sharding.get_mesh().shape) != 0

    def put(x):
        return jax.device_put(x, spec(("." if split and len(x) == B else "batch") + " ." * (x.ndim - 1)))

    return jax.tree.map(put, batch), grid, split
