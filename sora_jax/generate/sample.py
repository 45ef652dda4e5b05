"""The verb `sample`: prompts to mp4 files."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping

import jax
import rich.console

from sora_jax.errors import InputError, nearest
from sora_jax.generate.images import Given, check_images, give_images, read_images
from sora_jax.generate.pipeline import (
    SOLVERS,
    Generator,
    check_prompts,
    decode_video,
    latent_shape,
    load_generator,
    read_run,
    sample_latents,
)
from sora_jax.generate.writer import VideoWriter
from sora_jax.mesh import make_mesh, ways
from sora_jax.settings import MeshSettings, SampleSettings
from sora_jax.train.metrics import progress_bar


def sample(
    checkpoint: pathlib.Path,
    prompts: list[str],
    out: pathlib.Path,
    *,
    changes: dict,
    negative_prompt: str,
    seed: int,
    mesh: MeshSettings,
    console: rich.console.Console,
    image: pathlib.Path | None = None,
    last_image: pathlib.Path | None = None,
) -> list[pathlib.Path]:
    """Make a video for each prompt.

    Args:
      checkpoint: workdir of a training run.
      out: an .mp4; for several prompts a folder, in which they are numbered.
      changes: SampleSettings that differ from the checkpoint's own.
      seed: of the noise; prompt number n has the seed's n-th.
      image, last_image: pictures that every video begins and ends with.
    Returns: the files.
    Raises: InputError for a checkpoint, prompt, image, size or length that can't be used.
    """
    paths = [out] if len(prompts) == 1 and out.suffix else [out / f"{n:03}.mp4" for n in range(len(prompts))]
    if len(prompts) > 1 and out.suffix:
        raise InputError(f"--out={out}: is one file for {len(prompts)} prompts; name a folder")
    # All that can be wrong with a wish is told before the parameters, which may be many, are read.
    check_prompts(prompts, negative_prompt)
    devices = make_mesh(mesh)
    _, _, trained = read_run(checkpoint)
    settings: SampleSettings = dataclasses.replace(trained.sample, **changes)
    if settings.solver not in SOLVERS:
        raise InputError(f"--solver={settings.solver}: {nearest(settings.solver, SOLVERS)}")
    latent_shape(trained, settings)
    check_images(trained, image, last_image)
    images = read_images([path for path in (image, last_image) if path is not None], settings, console)
    for path in paths:
        VideoWriter(path, settings.fps)
    with jax.set_mesh(devices):
        generator = load_generator(checkpoint)
        given = give_images(generator, images, settings.frames) if images else None
        limit = trained.text.max_tokens
        for prompt in prompts:
            if (length := len(generator.tokenizer.encode(prompt))) > limit:
                note = f"note: {length - limit} of {length} tokens are cut from the prompt {prompt[:40]!r}..."
                console.print(note, highlight=False)
        rows = devices.shape["data"] * devices.shape["fsdp"]
        with progress_bar(console) as bar:
            task = bar.add_task("sampling", total=-(-len(prompts) // rows) * settings.steps, numbers="")
            pictures = {name: str(path) for name, path in (("image", image), ("last_image", last_image)) if path}
            for n in write_videos(
                generator,
                prompts,
                paths,
                settings,
                seed=seed,
                negative_prompt=negative_prompt,
                low_guidance=changes.get("guidance", 0.0),
                given=given,
                metadata=pictures,
                advance=lambda: bar.advance(task),
            ):
                console.print(f"{paths[n]}: {prompts[n]}", highlight=False)
    return paths


def write_videos(
    generator: Generator,
    prompts: list[str],
    paths: list[pathlib.Path],
    settings: SampleSettings,
    *,
    seed: int,
    negative_prompt: str = "",
    low_guidance: float = 0.0,
    given: Given | None = None,
    metadata: Mapping | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """Make a video for each prompt on the current mesh; all processes do, the first one writes.

    Args:
      seed, negative_prompt, low_guidance, given, advance: as `sample_latents` takes them.
      metadata: what the files say beside prompt, seed and settings.
    Yields: the number of each prompt whose video is written.
    """
    # One video on each part of the mesh at a time; what is missing is filled up and thrown away.
    rows = ways("batch", jax.sharding.get_mesh().shape)
    for first in range(0, len(prompts), rows):
        group = prompts[first : first + rows]
        latents = sample_latents(
            generator,
            group + [group[-1]] * (rows - len(group)),
            settings,
            seed=seed,
            first=first,
            negative_prompt=negative_prompt,
            low_guidance=low_guidance,
            given=given,
            advance=advance,
        )
        for n, prompt in enumerate(group, start=first):
            facts = {
                "prompt": prompt,
                "negative_prompt": negative_prompt,
                **(metadata or {}),
                "seed": seed,
                "number": n,
                "checkpoint_step": generator.step,
                **dataclasses.asdict(settings),
            }
            # All hosts decode, as their chips hold parts of each frame; one of them writes.
            writer = VideoWriter(paths[n], settings.fps, metadata=facts)
            with writer if jax.process_index() == 0 else contextlib.nullcontext() as video:
                for frames in decode_video(generator, latents[n - first]):
                    if video:
                        video.write(frames)
            yield n
