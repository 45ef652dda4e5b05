"""Parts of a request: videos that have all settings in common, from the check of these to the metadata."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Sequence

import rich.console

from sora_jax.checkpoint.workdir import split_step
from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.schema import SampleSettings, Settings
from sora_jax.core.storage import sha256
from sora_jax.generate.generator import Generator, latent_shape, video_size, with_dtype
from sora_jax.generate.inputs.opened_inputs import OpenedInputs
from sora_jax.generate.prompts import prompt_notes
from sora_jax.generate.refine.refiner import read_refiner
from sora_jax.generate.refine.target import Target, named, target_of
from sora_jax.generate.request import Refinement, Request
from sora_jax.generate.sampling import rolling
from sora_jax.generate.sampling.clips import Noise
from sora_jax.generate.sampling.pipeline import check_prompts, fill_batch, sample_latents
from sora_jax.generate.sampling.sampler import new_frames
from sora_jax.generate.sampling.schedule import denoising_schedule, guidance_low
from sora_jax.generate.sampling.step_cache import (
    FILE,
    VelocityChange,
    VelocityMeter,
    read_velocity_change,
    write_velocity_change,
)


@dataclasses.dataclass(frozen=True)
class Part:
    """Videos of a request that have all settings in common, checked and with their inputs opened.

    paths: of their files; None: they are kept in memory.
    target: what a refiner makes of them; without one, as they are sampled.
    """

    request: Request
    inputs: OpenedInputs
    paths: Sequence[pathlib.Path | None]
    target: Target

    @property
    def pixels(self) -> int:
        """Of all frames of its videos."""
        height, width = self.target.size
        frames = new_frames(self.inputs) if self.request.inputs.long else self.inputs.settings.frames
        frames += sum(video.frames for video in self.inputs.videos)
        return len(self.paths) * frames * self.target.factor * height * width


def open_parts(
    request: Request, paths: Sequence[pathlib.Path | None], trained: Settings, console: rich.console.Console
) -> list[Part]:
    """The parts of a request. Raises: InputError for settings or inputs that the model can't use."""
    parts, left, opened = [], list(paths), {}
    for part in request.parts():
        check_prompts(part.prompts, part.negative_prompt)
        settings = checked_settings(part, trained)
        if settings not in opened:
            opened[settings] = OpenedInputs(part, settings, trained, console)
        inputs = opened[settings]
        target = refined_target(inputs.settings, part.refinement)
        parts.append(Part(part, inputs, left[: len(part.prompts)], target))
        left = left[len(part.prompts) :]
    return parts


def refined_target(settings: SampleSettings, refinement: Refinement | None) -> Target:
    """What becomes of videos of these settings. Raises: InputError if the refiner can't make it."""
    if not refinement:
        return Target([video_size(settings)], 1, settings.fps)
    scale = read_refiner(refinement.checkpoint)[2].refine.scale
    return target_of(video_size(settings), settings.fps, refinement.size, refinement.fps, scale, "--refine")


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
    generator: Generator, checkpoint: pathlib.Path, part: Part, console: rich.console.Console
) -> Generator:
    """The generator with a part's type and step cache; prints what its prompts lose."""
    request, inputs = part.request, part.inputs
    generator = with_dtype(generator, inputs.settings.dtype)
    if inputs.settings.step_cache_threshold:
        path = request.step_cache_file or split_step(checkpoint)[0] / FILE
        known = read_velocity_change(path) if path.is_file() else None
        if not known or (not request.step_cache_file and known.step != generator.step):
            note(console, f"the change of the velocity is measured once, and kept in {path}")
            known = measure_velocity_change(generator, request, inputs)
            run_on_first_host(functools.partial(write_velocity_change, path, known))
        generator = dataclasses.replace(generator, velocity_change=known)
    for prompt in dict.fromkeys((*request.prompts, *request.inputs.story)):
        for text in prompt_notes(generator, prompt):
            note(console, text)
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
    if request.refinement:
        made = {"size": named(part.target.size), "fps": part.target.fps}
        metadata["refined"] = made | {"refiner": request.refinement.checkpoint.name}
    if part.inputs.files:
        metadata["input_hashes"] = {path.name: sha256(path) for path in part.inputs.files}
    strength = request.inputs.edit_strength
    if not strength or request.inputs.rolling:
        return metadata
    schedule = denoising_schedule(generator, settings, strength=strength)
    asked, left = max(1, round(settings.steps * strength)), len(schedule.steps)
    if left < asked:
        note(console, f"{left} of {asked} steps run: the times of the others are equal; see --shift")
    if settings.step_cache_threshold:
        metadata["cached_steps"] = schedule.cached
        note(console, f"{len(schedule.cached)} of {left} steps are cached")
    return metadata


def note(console: rich.console.Console, text: str):
    """Print a note, unless it is empty."""
    if text:
        console.print(f"note: {text}")
