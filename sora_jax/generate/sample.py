"""The command `sample`: a request, a trained model -> mp4 files and their manifests."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import jax
import rich.console

from sora_jax.checkpoint.workdir import split_step
from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.schema import MeshSettings, SampleSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import sha256
from sora_jax.generate import tasks
from sora_jax.generate.generator import (
    Generator,
    latent_shape,
    load_generator,
    read_run,
    video_size,
    with_dtype,
)
from sora_jax.generate.inputs.opened_inputs import OpenedInputs
from sora_jax.generate.output.files import check_outputs, keep_raw_frames, output_paths, write_video
from sora_jax.generate.output.provenance import params_hash
from sora_jax.generate.prompts import prompt_notes
from sora_jax.generate.request import Request, check_request, untrained_note
from sora_jax.generate.sampling import rolling
from sora_jax.generate.sampling.pipeline import Noise, check_prompts, fill_batch, sample_latents
from sora_jax.generate.sampling.sampler import LongVideos, ShortVideos, VideoSampler, new_frames
from sora_jax.generate.sampling.schedule import denoising_schedule, guidance_low
from sora_jax.generate.sampling.step_cache import (
    FILE,
    VelocityChange,
    VelocityMeter,
    read_velocity_change,
    write_velocity_change,
)
from sora_jax.generate.setting_sources import with_adapter_settings


class IncompleteError(InputError):
    """Some of the videos of a request could not be made."""

    code = 1


@dataclasses.dataclass(frozen=True)
class Part:
    """Videos of a request that have all settings in common, checked and with their inputs opened."""

    request: Request
    inputs: OpenedInputs
    paths: Sequence[pathlib.Path]

    @property
    def pixels(self) -> int:
        """Of all frames of its videos."""
        height, width = video_size(self.inputs.settings)
        frames = new_frames(self.inputs) if self.request.inputs.long else self.inputs.settings.frames
        return len(self.paths) * (frames + sum(video.frames for video in self.inputs.videos)) * height * width


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
    """The files of a video for each prompt of a request; each is on disk before the next one begins.

    Args:
      checkpoint: as `load_generator` takes it.
      out: an .mp4; for several prompts a folder, in which they are numbered.
      expand: rewrites prompts, as many as it gets; it is called when everything else has been checked.
      generator: the checkpoint's with the request's adapters, if it is loaded already, on this mesh.
      on_progress: called after each step of the solver with the steps that are done and their number in all; an
        exception that it raises ends the run.
    Raises: InputError for a checkpoint, prompt, given file, size or length that can't be used, before the first
      step; IncompleteError after the last video, if some could not be made.
    """
    paths = output_paths(out, len(request.prompts))
    check_prompts([*request.prompts, *request.inputs.story], request.negative_prompt or "")
    check_request(request)
    devices = make_mesh(mesh)
    trained = generator.settings if generator else read_run(checkpoint)[2]
    request, lines = with_adapter_settings(request, trained)
    parts = open_parts(request, paths, trained, console)
    check_outputs(paths, parts[0].inputs.settings.fps, sum(part.pixels for part in parts))
    _note(console, untrained_note(request.inputs, trained))
    if expand:
        expanded = expand_prompts(request, expand, console).parts()
        parts = [dataclasses.replace(part, request=new) for part, new in zip(parts, expanded, strict=True)]
    with jax.set_mesh(devices):
        dtype = parts[0].inputs.settings.dtype or None
        if generator is None:
            generator = load_generator(checkpoint, dtype=dtype, lora=request.lora)
            for line in lines:
                console.print(line)
        failed = make_videos(generator, checkpoint, parts, console, on_progress)
    if failed and len(paths) > 1:
        raise IncompleteError(f"{len(failed)} of {len(paths)} videos were not made: {'; '.join(failed)}")
    if failed:
        raise IncompleteError(failed[0])
    return paths


def open_parts(
    request: Request, paths: Sequence[pathlib.Path], trained: Settings, console: rich.console.Console
) -> list[Part]:
    """The parts of a request. Raises: InputError for settings or inputs that the model can't use."""
    parts, left, opened = [], list(paths), {}
    for part in request.parts():
        check_prompts(part.prompts, part.negative_prompt)
        settings = checked_settings(part, trained)
        if settings not in opened:
            opened[settings] = OpenedInputs(part, settings, trained, console)
        parts.append(Part(part, opened[settings], left[: len(part.prompts)]))
        left = left[len(part.prompts) :]
    return parts


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


def make_videos(
    generator: Generator,
    checkpoint: pathlib.Path,
    parts: Sequence[Part],
    console: rich.console.Console,
    on_progress: Callable[[int, int], None],
) -> list[str]:
    """Sample and write all videos, one after the other. Returns: why some were not made, one line each."""
    failed, done, total = [], 0, 0
    weights = params_hash(generator.params)
    with progress_bar(console) as bar:
        steps = bar.add_task("sampling", total=1, numbers="")

        def show(done_here, total_here):
            bar.update(steps, completed=done + done_here, total=total)
            on_progress(done + done_here, total)

        made = []
        for part in parts:
            prepared = prepared_generator(generator, checkpoint, part, console)
            metadata = describe(prepared, part, weights, console)
            made.append((part, metadata, video_source(prepared, part, metadata, console, show)))
            total += made[-1][2].total
        for part, metadata, source in made:
            for n, path in enumerate(part.paths):
                reason = make_video(source, n, path, part, metadata)
                failed += [reason] if reason else []
                console.print(f"not made: {reason}" if reason else f"{path}: {part.request.prompts[n]}")
            done += source.total
    return failed


def video_source(
    generator: Generator, part: Part, metadata: dict, console: rich.console.Console, on_progress: Callable
) -> ShortVideos | LongVideos:
    """What makes the frames of a part's videos."""
    request, inputs = part.request, part.inputs
    sampler = VideoSampler(
        generator,
        inputs.settings,
        seed=request.seed,
        negative_prompt=request.negative_prompt,
        on_progress=on_progress,
    )
    if request.inputs.long:
        options = {"first": request.first, "console": console}
        return LongVideos(sampler, inputs, request.prompts, part.paths, metadata, **options)
    steps = inputs.settings.steps
    if strength := request.inputs.edit_strength:
        steps = len(denoising_schedule(generator, inputs.settings, strength=strength).steps)
    return ShortVideos(sampler, inputs.task(generator), request.prompts, first=request.first, steps=steps)


def make_video(source: ShortVideos | LongVideos, n: int, path: pathlib.Path, part: Part, metadata: dict) -> str:
    """Sample and write video n of a part. Returns: why it was not made, in one line; "": it was."""
    request, fps = part.request, part.inputs.settings.fps
    own = {"prompt": request.prompts[n], "number": request.first + n, **metadata}
    if request.asked:
        own["asked"] = list(request.asked) if request.inputs.story else request.asked[n]
    try:
        reason = write_video(path, source.frames(n), fps, own, part.inputs.files, request.inputs.watermark)
        if reason:
            return f"{reason}; {keep_raw_frames(path, source.frames(n), fps)}"
    except (InputError, jax.errors.JaxRuntimeError) as error:  # the second one: too little memory
        return f"{path}: {str(error).splitlines()[0]}"
    source.finish(n)
    return ""


def prepared_generator(
    generator: Generator, checkpoint: pathlib.Path, part: Part, console: rich.console.Console
) -> Generator:
    """The generator with a part's type and step cache; prints what its prompts lose."""
    request, inputs = part.request, part.inputs
    generator = with_dtype(generator, inputs.settings.dtype)
    if inputs.settings.step_cache_threshold:
        path = request.step_cache_file or split_step(checkpoint)[0] / FILE
        known = read_velocity_change(path) if path.is_file() else None
        if not known or (not request.step_cache_file and known.step != generator.step):
            _note(console, f"the change of the velocity is measured once, and kept in {path}")
            known = measure_velocity_change(generator, request, inputs)
            run_on_first_host(functools.partial(write_velocity_change, path, known))
        generator = dataclasses.replace(generator, velocity_change=known)
    for prompt in dict.fromkeys((*request.prompts, *request.inputs.story)):
        for note in prompt_notes(generator, prompt):
            _note(console, note)
    return generator


def measure_velocity_change(generator: Generator, request: Request, inputs: OpenedInputs) -> VelocityChange:
    """The velocity change of the first prompts' videos, in one run without the step cache."""
    settings = dataclasses.replace(inputs.settings, step_cache_threshold=0.0)
    prompts, meter = fill_batch(request.prompts, settings.guidance), VelocityMeter()
    conditioning = inputs.task(generator).conditioning if inputs.takes_images else None
    noise, negative = Noise(request.seed, request.first), request.negative_prompt
    sample_latents(
        generator, prompts, settings, noise, negative_prompt=negative, conditioning=conditioning, on_step=meter
    )
    return meter.result(generator.step)


def describe(generator: Generator, part: Part, weights: str, console: rich.console.Console) -> dict:
    """How a part's videos are made, for their metadata; prints how many steps run.

    Args:
      weights: hash of the parameters.
    """
    request, settings = part.request, part.inputs.settings
    metadata = {
        **({"lora": [re.sub(r"(^|=).*/", r"\1", path) for path in request.lora]} if request.lora else {}),
        **request.inputs.described(),
        "seed": request.seed,
        "checkpoint_step": generator.step,
        "checkpoint_hash": weights,
        **dataclasses.asdict(settings),
    }
    if generator.low_noise:
        metadata["guidance_low"] = guidance_low(generator, settings)
    else:
        del metadata["guidance_low"]
    if part.inputs.files:
        metadata["input_hashes"] = {path.name: sha256(path) for path in part.inputs.files}
    strength = request.inputs.edit_strength
    if not strength or request.inputs.rolling:
        return metadata
    schedule = denoising_schedule(generator, settings, strength=strength)
    asked, left = max(1, round(settings.steps * strength)), len(schedule.steps)
    if left < asked:
        _note(console, f"{left} of {asked} steps run: the times of the others are equal; see --shift")
    if settings.step_cache_threshold:
        metadata["cached_steps"] = schedule.cached
        _note(console, f"{len(schedule.cached)} of {left} steps are cached")
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
    Raises: InputError if one can't be made or written.
    """
    sampler = VideoSampler(
        generator,
        settings,
        seed=seed,
        negative_prompt=settings.negative_prompt,
        on_progress=lambda done, total: advance(),
    )
    source = ShortVideos(sampler, tasks.Task(settings.frames), prompts, steps=settings.steps)
    metadata = {"seed": seed, "checkpoint_step": generator.step, **dataclasses.asdict(settings)}
    for n, path in enumerate(paths):
        about = {"prompt": prompts[n], "number": n, **metadata}
        if reason := write_video(path, source.frames(n), settings.fps, about):
            raise InputError(reason)
        yield n


def _note(console: rich.console.Console, text: str):
    if text:
        console.print(f"note: {text}")
