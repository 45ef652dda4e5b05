"""The verb `sample`: prompts, and what a task is given, to mp4 files."""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import rich.console

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.schema import MeshSettings, SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh, num_shards
from sora_jax.core.progress import progress_bar
from sora_jax.generate import long_videos as long
from sora_jax.generate import rolling, tasks
from sora_jax.generate.conditioning_images import check_images, video_size
from sora_jax.generate.input_video import Footage, open_footage, read_mask, read_picture
from sora_jax.generate.pipeline import (
    Generator,
    check_prompts,
    latent_shape,
    load_generator,
    plan_steps,
    read_run,
    retyped,
    rows_at_once,
    sample_latents,
)
from sora_jax.generate.provenance import file_hash, marked, params_hash, write_manifest
from sora_jax.generate.request import Request, check_request, read_keyframe, untrained_note
from sora_jax.generate.schedule import FILE, Meter, read_drift, write_drift
from sora_jax.generate.writer import VideoWriter

STRENGTH = 0.6  # of an edit, if none is said
TEXT = Request()


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
    request: Request = TEXT,
    expand: Callable[[list[str]], list[str]] | None = None,
    drift: pathlib.Path | None = None,
    generator: Generator | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[pathlib.Path]:
    """Make a video for each prompt.

    Args:
      checkpoint: workdir of a training run.
      out: an .mp4; for several prompts a folder, in which they are numbered.
      changes: SampleSettings that differ from the checkpoint's own.
      seed: of the noise; prompt number n has the seed's n-th.
      request: the task, and what every video is given for it.
      expand: writes out prompts, as many as it is given; it is asked when all else has been found to be well.
      drift: file of the measured drift, which is made if it is not there; None: beside the checkpoint.
      generator: the checkpoint's, if it is loaded already, on this mesh.
      tell: called after each step of the solver with how many are done, and of how many; what it raises ends all.
    Returns: the files.
    Raises: InputError for a checkpoint, prompt, given file, size or length that can't be used.
    """
    paths = [out] if len(prompts) == 1 and out.suffix else [out / f"{n:03}.mp4" for n in range(len(prompts))]
    if len(prompts) > 1 and out.suffix:
        raise InputError(f"--out={out}: is one file for {len(prompts)} prompts; name a folder")
    # All that can be wrong with a wish is told before the parameters, which may be many, are read.
    check_prompts(prompts, negative_prompt)
    check_request(request)
    check_prompts(list(request.story))
    devices = make_mesh(mesh)
    trained = generator.settings if generator else read_run(checkpoint)[2]
    settings: SampleSettings = dataclasses.replace(trained.sample, **changes)
    if request.rolling:
        rolling.check_rolling(trained, settings)
    inputs = Inputs(request, settings, trained, "frames" in changes, console)
    settings = inputs.settings
    latent_shape(trained, settings)
    for path in paths:
        VideoWriter(path, settings.fps)
    if note := untrained_note(request, trained):
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    asked = list(request.story) or prompts
    if expand:
        written = write_out(asked, expand, console)
        prompts, story = [written[p] for p in prompts], tuple(written[p] for p in request.story)
        request = inputs.request = dataclasses.replace(request, story=story)
    with jax.set_mesh(devices):
        if generator:
            generator = retyped(generator, settings.dtype)
        else:
            generator = load_generator(checkpoint, dtype=settings.dtype or None)
        low_guidance = changes.get("guidance", 0.0)
        if settings.skip:
            path = drift or checkpoint / FILE
            known = read_drift(path) if path.is_file() else None
            if known and (drift or known.step == generator.step):
                generator = dataclasses.replace(generator, drift=known)
            else:
                given = inputs.task(generator).given if inputs.conditions else None
                plain = dataclasses.replace(settings, skip=0.0)
                maker = Maker(generator, plain, seed, negative_prompt, low_guidance)
                generator = measured(maker, prompts, given, path, console)
        limit = trained.text.max_tokens
        for prompt in [*prompts, *request.story]:
            if (length := len(generator.tokenizer.encode(prompt))) > limit:
                note = f"note: {length - limit} of {length} tokens are cut from the prompt {prompt[:40]!r}..."
                console.print(note, highlight=False)
        made_of = {
            "negative_prompt": negative_prompt,
            **request.described(),
            "seed": seed,
            "checkpoint_step": generator.step,
            "checkpoint_hash": params_hash(generator.params),
            **dataclasses.asdict(settings),
        }
        if settings.skip and (strength := STRENGTH if request.strength is None else request.strength):
            strength = strength if request.name == "edit" else 1.0
            _, steps = plan_steps(generator, settings, strength=strength, low_guidance=low_guidance)
            made_of["skipped_steps"] = [i for i, step in enumerate(steps) if step.skipped]
            note = f"note: {len(made_of['skipped_steps'])} of {len(steps)} steps are skipped"
            console.print(note, highlight=False)
        maker = Maker(generator, settings, seed, negative_prompt, low_guidance)
        with progress_bar(console) as bar:
            bar_task = bar.add_task("sampling", total=1, numbers="")

            def told(done, total):
                bar.update(bar_task, completed=done, total=total)
                tell(done, total)

            maker.watch(told)
            videos = (
                long_videos(maker, inputs, prompts, paths, made_of, console)
                if request.long
                else short_videos(maker, inputs.task(generator), prompts)
            )
            for n, frames in enumerate(videos):
                metadata = {"prompt": prompts[n], "number": n, **made_of}
                if expand:
                    metadata["asked"] = asked if request.story else asked[n]
                write(paths[n], frames, settings.fps, metadata, inputs.files, request.watermark)
                console.print(f"{paths[n]}: {prompts[n]}", highlight=False)
                if request.long:
                    maker.windows.remove()
    return paths


def write_out(prompts: list[str], expand, console) -> dict[str, str]:
    """Each prompt and what it is written out as, which is shown.

    Raises: InputError if one is too long to be a prompt.
    """
    unique = list(dict.fromkeys(prompts))
    written = dict(zip(unique, expand(unique), strict=True))
    check_prompts(list(written.values()))
    for prompt, long_one in written.items():
        console.print(f"{prompt} -> {long_one}", highlight=False, soft_wrap=True, markup=False)
    return written


def measured(maker: "Maker", prompts: list[str], given, path: pathlib.Path, console) -> Generator:
    """The maker's generator with its drift, measured in one run that skips no step, and kept in a file."""
    note = f"note: how far the velocity moves is measured once, and kept in {path}"
    console.print(note, highlight=False, soft_wrap=True)
    meter = Meter()
    maker.watch(lambda done, total: None)
    maker(prompts[: maker.rows], given, frames=maker.settings.frames, first=0, meter=meter)
    drift = meter.drift(maker.generator.step)
    run_on_first_host(lambda: write_drift(path, drift))
    return dataclasses.replace(maker.generator, drift=drift)


def write_videos(
    generator: Generator,
    prompts: list[str],
    paths: list[pathlib.Path],
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
    maker = Maker(generator, settings, seed, "", 0.0)
    maker.watch(lambda done, total: advance())
    about = {"seed": seed, "checkpoint_step": generator.step, **dataclasses.asdict(settings)}
    for n, frames in enumerate(short_videos(maker, tasks.Task(settings.frames), prompts)):
        write(paths[n], frames, settings.fps, {"prompt": prompts[n], "number": n, **about}, (), "")
        yield n


def write(path, frames: Iterator[np.ndarray], fps: float, metadata: dict, files, watermark: str):
    """The mp4, while its frames are made, and its manifest."""
    # All hosts decode, as their chips hold parts of each frame; one of them writes.
    writes = jax.process_index() == 0
    with VideoWriter(path, fps, metadata=metadata) if writes else contextlib.nullcontext() as video:
        for chunk in frames:
            if video:
                video.write(marked(chunk, watermark) if watermark else chunk)
    if writes:
        write_manifest(path, metadata, files)


class Inputs:
    """What a request names, opened and checked; what is done to it is told.

    settings: with the number of frames that the model is to see; files: all that were read.
    """

    def __init__(self, request: Request, settings: SampleSettings, trained, frames_asked: bool, console):
        self.request, self.console, self.trained = request, console, trained
        self.size, self.stride = video_size(settings), trained.autoencoder.temporal_stride
        self.conditions = bool(trained.transformer.condition_channels)
        if self.conditions:
            if request.name not in ("text", "image") or request.long:
                raise InputError(
                    f"--task={request.name}: this model takes pictures beside the noise, --task=image"
                )
            check_images(trained, request.image, request.last_image)
        self.settings = settings
        if not frames_asked and request.name in ("edit", "inpaint", "outpaint"):
            self.settings = self._as_long_as_the_video(settings)
        latent_shape(trained, self.settings)
        frames, name = self.settings.frames, request.name
        if frames < 1 + 2 * self.stride and (request.long or name in ("connect", "loop")):
            raise InputError(f"--frames={frames}: --task={name} needs at least {1 + 2 * self.stride} at once")
        least = frames if name in ("edit", "inpaint", "outpaint") else 1 + self.stride
        least = 1 if name == "extend" and not request.backward else least
        own_size = name == "outpaint"
        self.footage: list[Footage] = [
            open_footage(path, None if own_size else self.size, settings.fps, least, console)
            for path in request.videos
        ]
        self.pictures = self._pictures(settings.fps)
        self.mask = read_mask(request.mask, self.footage[0].video, self.size) if request.mask else None
        self.files = [*(item.path for item in self.footage), *self._named()]

    def _as_long_as_the_video(self, settings):
        there = open_footage(
            self.request.videos[0], None, settings.fps, 1, rich.console.Console(quiet=True)
        ).frames
        frames = min(settings.frames, (there - 1) // self.stride * self.stride + 1)
        return dataclasses.replace(settings, frames=frames)

    def _named(self):
        request = self.request
        keyframes = [read_keyframe(text, 1.0)[1] for text in request.keyframes]
        return [path for path in (request.image, request.last_image, request.mask, *keyframes) if path]

    def _pictures(self, fps) -> dict[int, np.ndarray]:
        """Given pictures, by the number of their frame."""
        request, last = self.request, self.settings.frames - 1
        places = [(0, request.image), (last, request.last_image)]
        places += [read_keyframe(text, fps) for text in request.keyframes]
        for (number, _), text in zip(places[2:], request.keyframes, strict=True):
            if number > last:
                raise InputError(f"--keyframe={text}: the video ends at {last / fps:g} s")
        return {n: read_picture(path, self.size, self.console) for n, path in places if path}

    def between(self) -> int:
        """Latent frames between two videos."""
        if self.request.seconds is None:
            return max(1, (self.settings.frames - 1) // self.stride // 2)
        return max(1, -(-round(self.request.seconds * self.settings.fps) // self.stride))

    def task(self, generator) -> tasks.Task:
        """The run of the solver that the request is; for one that is not long."""
        name, frames = self.request.name, self.settings.frames
        if name == "text":
            return tasks.Task(frames)
        if name in ("image", "keyframes"):
            return tasks.animate(generator, frames, self.pictures)
        coder = tasks.coder_of(generator)
        if name == "loop" and not self.footage:
            return tasks.loop(coder, frames)
        if name in ("connect", "loop"):
            ends = self.footage * (2 if name == "loop" else 1)
            return tasks.connect(coder, frames, *ends, self.between(), close=name == "loop")
        video = np.stack(list(self.footage[0].read(0, frames)))
        if name == "edit":
            strength = self.request.strength
            return tasks.edit(coder, video, STRENGTH if strength is None else strength)
        if name == "inpaint":
            return tasks.repaint(coder, video, self.mask)
        return tasks.repaint(coder, *tasks.on_canvas(coder, video, self.size))


class Maker:
    """Runs the solver for some prompts at a time, as many as the mesh takes, and tells how far it is."""

    def __init__(self, generator, settings: SampleSettings, seed: int, negative_prompt: str, low_guidance: float):
        self.generator, self.settings, self.seed = generator, settings, seed
        self.negative_prompt, self.low_guidance = negative_prompt, low_guidance
        self.rows = num_shards("batch", jax.sharding.get_mesh().shape)  # at most so many videos at a time
        self.windows: long.Windows | None = None
        self.done = 0

    def watch(self, tell):
        self._tell = tell

    def __call__(
        self, prompts: list[str], given, *, frames: int, total=None, clock=None, rest=None, **options
    ) -> np.ndarray:
        """Latents of each of the prompts; what is missing to fill the mesh is made and thrown away.

        Args:
          total: steps in all, for whoever watches; clock, rest: as `rolling.roll` takes them; options: as it does,
            or, without a clock, `sample_latents`.
        """

        def advance():
            self.done += 1
            self._tell(self.done, total)

        rows = rows_at_once(len(prompts), self.settings.guidance)
        padded = prompts + [prompts[-1]] * (rows - len(prompts))
        settings = dataclasses.replace(self.settings, frames=frames)
        options |= {"seed": self.seed, "negative_prompt": self.negative_prompt, "given": given, "advance": advance}
        if clock:
            return rolling.roll(self.generator, padded, settings, clock, rest, **options)
        return sample_latents(self.generator, padded, settings, low_guidance=self.low_guidance, **options)


def short_videos(maker: Maker, task: tasks.Task, prompts: list[str]) -> Iterator[Iterator[np.ndarray]]:
    """The frames of a video for each prompt, each from one run of the solver."""
    total = -(-len(prompts) // maker.rows) * maker.settings.steps
    for first in range(0, len(prompts), maker.rows):
        group = prompts[first : first + maker.rows]
        made = maker(group, task.given, frames=task.frames, first=first, loop=task.loop, total=total)
        for latents in made[: len(group)]:
            yield tasks.render(
                maker.generator.autoencoder_params, maker.generator.autoencoder, task.parts(latents)
            )


def long_videos(
    maker: Maker, inputs: Inputs, prompts: list[str], paths, made_of: dict, console
) -> Iterator[Iterator[np.ndarray]]:
    """The frames of a video for each prompt, made window after window."""
    coder, request, window = tasks.coder_of(maker.generator), inputs.request, inputs.settings.frames
    frames = max(1, round(request.seconds * inputs.settings.fps))
    given, story = inputs.footage[0] if inputs.footage else None, request.story
    n = (window - 1) // coder.stride + 1
    clock = rolling.clock_of(n, long.context_of(n), inputs.settings.steps) if request.rolling else None
    ahead = clock.ahead if clock else 0
    number_of = long.count(coder.stride, window, frames, given, backward=request.backward, ahead=ahead)
    runs = [inputs.settings.steps] * number_of
    if clock:
        known = long.known_of(coder.stride, window, given)
        runs = [len(clock.course(n, known, 0)) - 1] + [clock.lag] * (number_of - 1)
    before = list(itertools.accumulate(runs, initial=0))
    for number, prompt in enumerate(prompts):
        hashes = [file_hash(path) for path in inputs.files]
        windows = long.Windows(
            paths[number], {"prompt": prompt, "number": number, "files": hashes, **made_of}, console
        )
        maker.windows = windows

        def make(window_number, share, give, rest, number=number, prompt=prompt, windows=windows):
            words = story[int(share * len(story))] if story else prompt
            # Those of windows that were there already, too.
            maker.done = number * before[-1] + before[window_number]
            options = {"first": number, "window": window_number, "clock": clock, "rest": rest}
            options["total"] = len(prompts) * before[-1]
            return windows.get(window_number, lambda: maker([words], give(), frames=window, **options)[0])

        yield (
            long.backward(coder, make, window, frames, given)
            if request.backward
            else long.forward(coder, make, window, frames, given, ahead=ahead)
        )
