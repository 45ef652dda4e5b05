"""From prompts to videos: encode the text, solve the flow, decode as a stream, write.

`load_generator` reads a training run's workdir, which is self-contained: checkpoint, autoencoder, tokenizer.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sora_jax.data.tokenizer import Tokenizer
from sora_jax.diffusion.conditioning import hold_known, start_from
from sora_jax.diffusion.flow import levels_of, shift_of, told_time
from sora_jax.diffusion.guidance import guided, in_pairs
from sora_jax.diffusion.solvers import dpm, euler, heun, time_grid, unipc
from sora_jax.errors import InputError
from sora_jax.mesh import spec
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.module import bind
from sora_jax.models.streaming import decode_stream
from sora_jax.models.video_model import VideoModel
from sora_jax.patches import PatchBatch, grid_positions, patch_grid, patchify, unpatchify
from sora_jax.settings import AutoencoderSettings, SampleSettings, Settings, parse_size
from sora_jax.train.checkpoint import find_checkpoint, read_meta
from sora_jax.train.frozen import restore_model
from sora_jax.weights.store import load_model

SOLVERS = {"euler": euler, "heun": heun, "dpm": dpm, "unipc": unipc}
LONGEST_PROMPT = 10_000  # characters; far more than any encoder takes, so a mistake such as a whole file


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained model and what it needs: settings, its parameters, the autoencoder's, the tokenizer."""

    settings: Settings
    params: dict
    autoencoder: AutoencoderSettings
    autoencoder_params: dict
    tokenizer: Tokenizer
    step: int  # updates that the parameters have had


def read_run(workdir: pathlib.Path) -> tuple[pathlib.Path, int, Settings]:
    """The folder of a workdir's checkpoints, the newest one's step, and the settings it was made with.

    Raises: InputError if there is no checkpoint, or it is none of a transformer.
    """
    folder, step = find_checkpoint(workdir)
    settings, _ = read_meta(folder, step)
    if settings.objective != "flow":
        raise InputError(f"{workdir}: its checkpoint is an {settings.objective}; `sample` needs a transformer's")
    return folder, step, settings


def load_generator(workdir: pathlib.Path) -> Generator:
    """The averaged parameters of a workdir's newest checkpoint, laid out on the current mesh.

    Raises: InputError if there is no checkpoint, it is none of a transformer, or a part of it is missing.
    """
    workdir = pathlib.Path(workdir)
    folder, step, settings = read_run(workdir)
    params = restore_model(folder, step, settings)
    autoencoder, autoencoder_params = load_model(workdir / "autoencoder", Autoencoder, AutoencoderSettings)
    return Generator(
        settings, params, autoencoder, autoencoder_params, Tokenizer(workdir / "tokenizer.model"), step
    )


def latent_shape(settings: Settings, sample: SampleSettings) -> tuple[int, int, int]:
    """(frames, rows, columns) of the latents of a video of that size and length.

    Raises: InputError if the model can't make it; names the nearest that it can.
    """
    stride, temporal = settings.autoencoder.spatial_stride, settings.autoencoder.temporal_stride
    patch = settings.transformer.patch
    size = parse_size(sample.size, "--size")
    if isinstance(size, int):
        size = (size, size)
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
    segments = np.zeros((len(prompts), limit), np.int32)
    for row, prompt in enumerate(prompts):
        ids = generator.tokenizer.encode(prompt, limit)
        tokens[row, : len(ids)] = ids
        segments[row, : limit if generator.settings.text.padded else len(ids)] = 1
    return tokens, segments


def sample_latents(
    generator: Generator,
    prompts: list[str],
    sample: SampleSettings,
    *,
    seed: int,
    negative_prompt: str = "",
    given: np.ndarray | None = None,
    known: np.ndarray | None = None,
) -> np.ndarray:
    """Latents of one video for each prompt.

    Args:
      given: latents of which some are known, [B, f, h, w, C].
      known: which patches of them, [B, N] bool.
    Returns: [B, f, h, w, C] float32, normalised as the autoencoder's latents are.
    """
    check_prompts(prompts, negative_prompt)
    shape = latent_shape(generator.settings, sample)
    patch, C = generator.settings.transformer.patch, generator.settings.transformer.channels
    grid = patch_grid(shape, patch)
    N, B = int(np.prod(grid)), len(prompts)
    both, both_segments = tokenize(generator, [p for prompt in prompts for p in (prompt, negative_prompt)])
    batch = PatchBatch(
        patches=np.zeros((B, N, C * int(np.prod(patch))), np.float32) if given is None else patchify(given, patch),
        positions=np.broadcast_to(grid_positions(grid), (B, N, 3)),
        segments=np.ones((B, N), np.int32),
        known=np.zeros((B, N), bool) if known is None else known,
        text=both,
        text_segments=both_segments,
    )
    shift = sample.shift or float(shift_of(N, grid[0]))
    whole = generator.settings.flow.whole_times
    times = time_grid(sample.steps, shift, end=1 / whole if whole else 0.0)
    patches = solve(
        generator.settings,
        SOLVERS[sample.solver],
        generator.params,
        jax.tree.map(lambda x: jax.device_put(x, spec("batch" + " ." * (x.ndim - 1))), batch),
        times,
        jnp.float32(sample.guidance),
        jax.random.key(seed),
    )
    return unpatchify(multihost_utils.process_allgather(patches, tiled=True), grid, patch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def solve(settings: Settings, solver: Callable, params: dict, batch: PatchBatch, times, guidance, key):
    """Patches of one clip a row, from noise.

    Args:
      batch: its text has two rows for each row of patches: the prompt and the negative prompt.
      times: from `time_grid`.
      guidance: scalar.
    Returns: [B, N, P] float32.
    """
    model = bind(VideoModel, settings, params)
    pairs = jax.tree.map(in_pairs, batch.replace(text=None, text_segments=None))
    pairs = model.embed_text(pairs.replace(text=batch.text, text_segments=batch.text_segments))
    # One key a row: a video does not depend on what else is in its batch, or on the mesh.
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(batch.known)))
    noise = jax.vmap(lambda key: jax.random.normal(key, batch.patches.shape[1:]))(keys)
    noise = jax.reshard(noise, spec("batch tokens ."))

    def velocity(x, t):
        t = told_time(t, settings.flow)
        table, levels = levels_of(pairs, jnp.full_like(pairs.segments[:, :1], t, jnp.float32))
        return model.velocity(pairs, x, table, levels)

    held = hold_known(guided(velocity, guidance), batch.known)
    return solver(held, start_from(noise, batch), times)


def decode_video(generator: Generator, latents) -> Iterator[np.ndarray]:
    """Latents of one video, [f, h, w, C] -> its frames chunk by chunk, [F, H, W, 3] uint8."""
    yield from decode_stream(generator.autoencoder_params, generator.autoencoder, latents)
