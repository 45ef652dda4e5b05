"""The command `sample`: a request, a trained model -> mp4 files and their manifests."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import rich.console

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.schema import MeshSettings, SampleSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.progress import progress_bar
from sora_jax.generate import rolling, tasks
from sora_jax.generate.generator import (
    Generator,
    latent_shape,
    load_generator,
    read_run,
    with_dtype,
    with_guidance,
)
from sora_jax.generate.opened_inputs import OpenedInputs
from sora_jax.generate.pipeline import Noise, check_prompts, fill_batch, sample_latents
from sora_jax.generate.provenance import marked, params_hash, write_manifest
from sora_jax.generate.request import Request, check_inputs, untrained_note
from sora_jax.generate.sampler import VideoSampler, long_video_frames, short_videos
from sora_jax.generate.schedule import denoising_schedule
from sora_jax.generate.setting_sources import with_adapter_settings
from sora_jax.generate.step_cache import (
    FILE,
    VelocityChange,
    VelocityMeter,
    read_velocity_change,
    write_velocity_change,
)
from sora_jax.generate.writer import VideoWriter


def sample(
    checkpoint: pathlib.Path,
    request: Request,
    out: pathlib.Path,
    *,
    mesh: MeshSettings,
    console: rich.console.Console,
    expand: Callable[[list[str]], list[str]] | None = None,
    generator: Generator | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[pathlib.Path]:
    """The files of a video for each prompt of a request.

    Args:
      checkpoint: workdir of a training run.
      out: an .mp4; for several prompts a folder, in which they are numbered.
      expand: rewrites prompts, as many as it gets; it is called when everything else has been checked.
      generator: the checkpoint's, if it is loaded already, on this mesh.
      on_progress: called after each step of the solver with the steps that are done and their number in all; an
        exception that it raises ends the run.
    Raises: InputError for a checkpoint, prompt, given file, size or length that can't be used.
    """
    paths = output_paths(out, len(request.prompts))
    check_prompts([*request.prompts, *request.inputs.story], request.negative_prompt or "")
    check_inputs(request.inputs)
    devices = make_mesh(mesh)
    trained = generator.settings if generator else read_run(checkpoint)[2]
    request, lines = with_adapter_settings(request, trained.sample)
    settings, any_length = checked_settings(request, trained), "frames" not in request.changes
    inputs = OpenedInputs(request.inputs, settings, trained, any_length=any_length, console=console)
    for path in paths:
        VideoWriter(path, settings.fps)
    _note(console, untrained_note(request.inputs, trained))
    if expand:
        request = expand_prompts(request, expand, console)
    for line in lines:
        console.print(line)
    with jax.set_mesh(devices):
        generator = generator or load_generator(checkpoint, dtype=settings.dtype or None, lora=request.lora)
        generator = prepared_generator(generator, checkpoint, request, inputs, console)
        make_videos(generator, request, inputs, paths, console, on_progress)
    return paths


def make_videos(
    generator: Generator,
    request: Request,
    inputs: OpenedInputs,
    paths: Sequence[pathlib.Path],
    console: rich.console.Console,
    on_progress: Callable[[int, int], None],
):
    """Sample and write the request's videos, one after the other."""
    metadata = describe(generator, request, inputs.settings, console)
    with progress_bar(console) as bar:
        steps = bar.add_task("sampling", total=1, numbers="")

        def show(done, total):
            bar.update(steps, completed=done, total=total)
            on_progress(done, total)

        sampler = VideoSampler(
            generator,
            inputs.settings,
            seed=request.seed,
            negative_prompt=request.negative_prompt,
            on_progress=show,
        )
        if request.inputs.long:
            videos = long_video_frames(sampler, inputs, request.prompts, paths, metadata, console)
        else:
            videos = short_videos(sampler, inputs.task(generator), request.prompts)
        for n, frames in enumerate(videos):
            own = {"prompt": request.prompts[n], "number": n, **metadata}
            if request.asked:
                own["asked"] = list(request.asked) if request.inputs.story else request.asked[n]
            write_video(paths[n], frames, inputs.settings.fps, own, inputs.files, request.inputs.watermark)
            console.print(f"{paths[n]}: {request.prompts[n]}")


def output_paths(out: pathlib.Path, count: int) -> list[pathlib.Path]:
    """The files of so many videos. Raises: InputError for one file for several videos."""
    if count == 1 and out.suffix:
        return [out]
    if out.suffix:
        raise InputError(f"--out={out}: is one file for {count} prompts; name a folder")
    return [out / f"{n:03}.mp4" for n in range(count)]


def checked_settings(request: Request, trained: Settings) -> SampleSettings:
    """The settings of the request's samples. Raises: InputError for those that the model can't use."""
    settings = request.settings(trained.sample)
    if request.inputs.rolling:
        rolling.check_rolling(trained, settings)
    latent_shape(trained, settings)
    return settings


def expand_prompts(request: Request, expand: Callable, console: rich.console.Console) -> Request:
    """The request with its prompts and story rewritten; prints each.

    Raises: InputError if one becomes too long to be a prompt.
    """
    story = request.inputs.story
    asked = story or request.prompts
    unique = list(dict.fromkeys(asked))
    expanded = dict(zip(unique, expand(unique), strict=True))
    check_prompts(list(expanded.values()))
    for prompt, text in expanded.items():
        console.print(f"{prompt} -> {text}")
    inputs = dataclasses.replace(request.inputs, story=tuple(expanded[p] for p in story))
    prompts = tuple(expanded[p] for p in request.prompts)
    return dataclasses.replace(request, prompts=prompts, inputs=inputs, asked=tuple(asked))


def prepared_generator(
    generator: Generator,
    checkpoint: pathlib.Path,
    request: Request,
    inputs: OpenedInputs,
    console: rich.console.Console,
) -> Generator:
    """The generator with the request's type, guidance and step cache; prints what the prompts lose."""
    generator = with_dtype(generator, inputs.settings.dtype)
    if "guidance" in request.changes:
        generator = with_guidance(generator, request.changes["guidance"])
    if inputs.settings.step_cache_threshold:
        path = request.step_cache_file or checkpoint / FILE
        known = read_velocity_change(path) if path.is_file() else None
        if not known or (not request.step_cache_file and known.step != generator.step):
            _note(console, f"the change of the velocity is measured once, and kept in {path}")
            known = measure_velocity_change(generator, request, inputs)
            run_on_first_host(functools.partial(write_velocity_change, path, known))
        generator = dataclasses.replace(generator, velocity_change=known)
    limit = generator.settings.text.max_tokens
    for prompt in (*request.prompts, *request.inputs.story):
        if (length := len(generator.tokenizer.encode(prompt))) > limit:
            _note(console, f"{length - limit} of {length} tokens are cut from the prompt {prompt[:40]!r}...")
    return generator


def measure_velocity_change(generator: Generator, request: Request, inputs: OpenedInputs) -> VelocityChange:
    """The velocity change of the first prompts' videos, in one run without the step cache."""
    settings = dataclasses.replace(inputs.settings, step_cache_threshold=0.0)
    prompts, meter = fill_batch(request.prompts, settings.guidance), VelocityMeter()
    conditioning = inputs.task(generator).conditioning if inputs.takes_images else None
    noise, negative = Noise(request.seed), request.negative_prompt
    sample_latents(
        generator, prompts, settings, noise, negative_prompt=negative, conditioning=conditioning, on_step=meter
    )
    return meter.result(generator.step)


def describe(
    generator: Generator, request: Request, settings: SampleSettings, console: rich.console.Console
) -> dict:
    """How the request's videos are made, for their metadata; prints how many steps are cached."""
    metadata = {
        **({"lora": list(request.lora)} if request.lora else {}),
        **request.inputs.described(),
        "seed": request.seed,
        "checkpoint_step": generator.step,
        "checkpoint_hash": params_hash(generator.params),
        **dataclasses.asdict(settings),
    }
    if settings.step_cache_threshold and (strength := request.inputs.edit_strength):
        schedule = denoising_schedule(generator, settings, strength=strength)
        metadata["cached_steps"] = schedule.cached
        _note(console, f"{len(schedule.cached)} of {len(schedule.steps)} steps are cached")
    return metadata


def write_videos(
    generator: Generator,
    prompts: Sequence[str],
    paths: Sequence[pathlib.Path],
    settings: SampleSettings,
    *,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """Make a video for each prompt from text alone, on the current mesh; all processes do, the first one writes.

    Args:
      advance: called after each step of the solver.
    Yields: the number of each prompt whose video is written.
    """
    sampler = VideoSampler(
        generator,
        settings,
        seed=seed,
        negative_prompt=settings.negative_prompt,
        on_progress=lambda done, total: advance(),
    )
    metadata = {"seed": seed, "checkpoint_step": generator.step, **dataclasses.asdict(settings)}
    for n, frames in enumerate(short_videos(sampler, tasks.Task(settings.frames), prompts)):
        write_video(paths[n], frames, settings.fps, {"prompt": prompts[n], "number": n, **metadata})
        yield n


def write_video(
    path: pathlib.Path,
    frames: Iterator[np.ndarray],
    fps: float,
    metadata: Mapping,
    files: Sequence[pathlib.Path] = (),
    watermark: str = "",
):
    """Write the mp4 while its frames are made, and then its manifest.

    All hosts decode, as each frame is spread over their chips. The first one writes.

    Args:
      files: that the video was made from, for the manifest.
    """
    first_host = jax.process_index() == 0
    with VideoWriter(path, fps, metadata=metadata) if first_host else contextlib.nullcontext() as video:
        for chunk in frames:
            if video:
                video.write(marked(chunk, watermark) if watermark else chunk)
    if first_host:
        write_manifest(path, metadata, files)


def _note(console: rich.console.Console, text: str):
    if text:
        console.print(f"note: {text}")
