"""Requests and a trained model -> videos, as mp4 files with their manifests, or in memory.

All requests are checked before the first step. Then their videos share runs of the solver (`Batches`).
"""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import rich.console

from sora_jax.config.schema import MeshSettings, SampleSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.progress import progress_bar
from sora_jax.generate import tasks
from sora_jax.generate.generator import Generator, load_generator, read_run
from sora_jax.generate.output.files import check_outputs, keep_raw_frames, output_paths, write_video
from sora_jax.generate.output.provenance import marked, params_hash
from sora_jax.generate.parts import Part, describe, expand_prompts, note, open_parts, prepared_generator
from sora_jax.generate.refine.refiner import load_refiner
from sora_jax.generate.refine.sampled import RefinedVideos
from sora_jax.generate.request import Request, check_request, untrained_note
from sora_jax.generate.sampling.batches import Batches, Progress
from sora_jax.generate.sampling.clips import Clip, Noise
from sora_jax.generate.sampling.pipeline import check_prompts
from sora_jax.generate.sampling.sampler import LongVideos, ShortVideos, VideoSampler
from sora_jax.generate.setting_sources import with_adapter_settings
from sora_jax.models.autoencoder.streaming import decode_stream

VideoSource = ShortVideos | LongVideos | RefinedVideos


class IncompleteError(InputError):
    """Some of the videos of a request could not be made."""

    code = 1


@dataclasses.dataclass(frozen=True)
class Job:
    """A request, and where its videos go.

    out: an .mp4; for several prompts a folder, in which they are numbered; None: they are kept in memory.
    console: for notes and the progress of this request.
    expand: rewrites prompts, as many as it gets; it is called when everything else has been checked.
    on_progress: called after each step of the solver with the steps that are done and their number in all; an
      exception that it raises ends this job, and no other.
    on_preview: called after each step of a short video with a function: its first frame as the step predicts it,
      [H, W, 3] uint8.
    """

    request: Request
    out: pathlib.Path | None
    console: rich.console.Console
    expand: Callable[[list[str]], list[str]] | None = None
    on_progress: Callable[[int, int], None] = lambda done, total: None
    on_preview: Callable[[Callable[[], np.ndarray]], None] = lambda frame: None


@dataclasses.dataclass(frozen=True)
class Made:
    """A video that was made.

    frames: [F, H, W, 3] uint8, if it was kept in memory; else `path` is its file.
    files: that it was made from.
    """

    fps: float
    metadata: Mapping
    files: Sequence[pathlib.Path] = ()
    path: pathlib.Path | None = None
    frames: np.ndarray | None = None


@dataclasses.dataclass
class Work:
    """A job that was checked, and what became of it.

    lines: what to print when the model is loaded.
    failed: why videos were not made, one line each.
    error: what ended the job.
    """

    job: Job
    parts: list[Part] = dataclasses.field(default_factory=list)
    lines: list[str] = dataclasses.field(default_factory=list)
    made: list[Made] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    error: Exception | None = None

    @property
    def outcome(self) -> list[Made] | Exception:
        """The videos of the job, or why they are not all there."""
        count = len(self.job.request.prompts)
        if self.error or not self.failed:
            return self.error or self.made
        if count == 1:
            return IncompleteError(self.failed[0])
        return IncompleteError(f"{len(self.failed)} of {count} videos were not made: {'; '.join(self.failed)}")


def sample(
    checkpoint: pathlib.Path,
    request: Request,
    out: pathlib.Path | None,
    *,
    mesh: MeshSettings,
    console: rich.console.Console,
    generator: Generator | None = None,
    load: Callable[[], Generator] | None = None,
    **job,
) -> list[Made]:
    """A video for each prompt of a request; those of a run of the solver are on disk before the next run begins.

    Args:
      checkpoint, mesh, generator, load: as `sample_jobs` takes them.
      out, console, and `expand` and `on_progress` in `job`: as Job has them.
    Raises: InputError for a checkpoint, prompt, given file, size or length that can't be used, before the first
      step; IncompleteError after the last video, if some could not be made; what on_progress raises.
    """
    (outcome,) = sample_jobs(
        checkpoint, [Job(request, out, console, **job)], mesh=mesh, generator=generator, load=load
    )
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def sample_jobs(
    checkpoint: pathlib.Path,
    jobs: Sequence[Job],
    *,
    mesh: MeshSettings,
    generator: Generator | None = None,
    load: Callable[[], Generator] | None = None,
) -> list[list[Made] | Exception]:
    """The videos of several requests of any sizes and tasks, sampled together; or why a job has not made all.

    A video has the same noise whatever is sampled beside it. Long videos are made one after the other.

    Args:
      checkpoint: as `load_generator` takes it.
      jobs: with the same adapters.
      generator: the checkpoint's with the jobs' adapters, if it is loaded already, on this mesh.
      load: loads it, once the jobs are checked; None: as `load_generator` does.
    Returns: for each job its videos in the order of its prompts, or the exception that `sample` raises for it. One
      job's fault, or end, does not touch the others.
    Raises: InputError if the jobs differ in their adapters.
    """
    if len({job.request.lora for job in jobs}) > 1:
        raise InputError("requests that are sampled together need the same adapters")
    devices = make_mesh(mesh)
    works = [Work(job) for job in jobs]
    for work in works:
        with _ending(work):
            check_job(work, checkpoint, generator.settings if generator else None)
    ready = [work for work in works if not work.error]
    with jax.set_mesh(devices):
        if ready and generator is None:
            dtype = ready[0].parts[0].inputs.settings.dtype or None
            generator = load() if load else load_generator(checkpoint, dtype=dtype, lora=jobs[0].request.lora)
            for work in ready:
                for line in work.lines:
                    work.job.console.print(line)
        if ready:
            make_videos(generator, checkpoint, ready)
    return [work.outcome for work in works]


def check_job(work: Work, checkpoint: pathlib.Path, trained: Settings | None):
    """Open the job's inputs and expand its prompts.

    Args:
      trained: settings of the model; None: they are read from the checkpoint.
    Raises: InputError for what can't be used.
    """
    job, request = work.job, work.job.request
    count = len(request.prompts)
    paths = output_paths(job.out, count) if job.out else [None] * count
    check_prompts([*request.prompts, *request.inputs.story], request.negative_prompt or "")
    check_request(request)
    trained = trained or read_run(checkpoint)[2]
    request, work.lines = with_adapter_settings(request, trained)
    parts = open_parts(request, paths, trained, job.console)
    if job.out:
        check_outputs(paths, parts[0].target.fps, sum(part.pixels for part in parts))
    note(job.console, untrained_note(request.inputs, trained))
    if job.expand:
        expanded = expand_prompts(request, job.expand, job.console).parts()
        parts = [dataclasses.replace(part, request=new) for part, new in zip(parts, expanded, strict=True)]
    work.parts = parts


def make_videos(generator: Generator, checkpoint: pathlib.Path, works: Sequence[Work]):
    """Sample the videos of all jobs, and write each as soon as its latents are there."""
    weights = params_hash(generator.params)
    batches, sources = Batches(), []
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sora_jax-")))
        for work in works:
            console, progress = (
                work.job.console,
                Progress(_shown(work.job, stack), _previewed(work.job, generator)),
            )
            with _ending(work):
                for part in work.parts:
                    own = prepared_generator(generator, checkpoint, part, console)
                    metadata = describe(own, part, weights, console)
                    if part.request.inputs.long:
                        paths = [path or folder / f"{len(sources)}-{n}" for n, path in enumerate(part.paths)]
                        source = long_source(own, part, paths, metadata, console, progress)
                    else:
                        source = short_source(own, part, batches, progress)
                    if refinement := part.request.refinement:
                        source = RefinedVideos(source, part, load_refiner(refinement.checkpoint))
                    sources.append((work, part, metadata, source))
        batches.plan()
        for work, part, metadata, source in sources:
            if work.error:
                continue
            with _ending(work):
                for n in range(len(part.paths)):
                    make_video(work, part, n, source, metadata)


def short_source(generator: Generator, part: Part, batches: Batches, progress: Progress) -> ShortVideos:
    """What makes the frames of a part's videos, whose clips are added to the batches."""
    request, task = part.request, part.inputs.task(generator)
    settings = dataclasses.replace(part.inputs.settings, frames=task.frames)
    numbers = [
        batches.add(
            generator,
            Clip(
                prompt,
                settings,
                Noise(request.seed, request.first + n),
                request.negative_prompt or "",
                task.conditioning,
                task.loop,
            ),
            progress,
        )
        for n, prompt in enumerate(request.prompts)
    ]
    return ShortVideos(batches, numbers, task, generator)


def long_source(
    generator: Generator,
    part: Part,
    paths: Sequence[pathlib.Path],
    metadata: Mapping,
    console: rich.console.Console,
    progress: Progress,
) -> LongVideos:
    """What makes the frames of a part's long videos, whose windows are kept beside the paths."""
    request, before = part.request, progress.total

    def on_progress(done, total):
        progress.advance(before + done)
        if progress.error:
            raise progress.error

    sampler = VideoSampler(
        generator,
        part.inputs.settings,
        seed=request.seed,
        negative_prompt=request.negative_prompt or "",
        on_progress=on_progress,
    )
    source = LongVideos(
        sampler, part.inputs, request.prompts, paths, metadata, first=request.first, console=console
    )
    progress.total += source.total
    return source


def make_video(work: Work, part: Part, n: int, source: VideoSource, metadata: Mapping):
    """Sample and write video n of a part."""
    request, fps, path, console = part.request, part.target.fps, part.paths[n], work.job.console
    own = {"prompt": request.prompts[n], "number": request.first + n, **metadata}
    if request.asked:
        own["asked"] = list(request.asked) if request.inputs.story else request.asked[n]
    mark, files, frames, reason = request.inputs.watermark, part.inputs.files, None, ""
    try:
        if path is None:
            chunks = source.frames(n)
            frames = np.concatenate([marked(chunk, mark) if mark else chunk for chunk in chunks])
        elif reason := write_video(path, source.frames(n), fps, own, files, mark):
            reason = f"{reason}; {keep_raw_frames(path, source.frames(n), fps)}"
    except (InputError, jax.errors.JaxRuntimeError) as error:  # the second one: too little memory
        reason = f"{path or request.prompts[n]}: {str(error).splitlines()[0]}"
    if reason:
        work.failed.append(reason)
        console.print(f"not made: {reason}")
        return
    source.finish(n)
    work.made.append(Made(fps, own, files, path, frames))
    if path:
        console.print(f"{path}: {request.prompts[n]}")


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
    batches, progress = Batches(), Progress(lambda done, total: advance())
    clips = [Clip(prompt, settings, Noise(seed, n), settings.negative_prompt) for n, prompt in enumerate(prompts)]
    numbers = [batches.add(generator, clip, progress) for clip in clips]
    batches.plan()
    source = ShortVideos(batches, numbers, tasks.Task(settings.frames), generator)
    metadata = {"seed": seed, "checkpoint_step": generator.step, **dataclasses.asdict(settings)}
    for n, path in enumerate(paths):
        about = {"prompt": prompts[n], "number": n, **metadata}
        if reason := write_video(path, source.frames(n), settings.fps, about):
            raise InputError(reason)
        source.finish(n)
        yield n


@contextlib.contextmanager
def _ending(work: Work):
    """A context that ends the job if something is raised in it."""
    try:
        yield
    except Exception as error:  # the others' videos are still to be made
        work.error = work.error or error


def _previewed(job: Job, generator: Generator) -> Callable[[Callable[[], np.ndarray]], None]:
    """The job's on_preview, called with latents."""

    def preview(latents):
        def frame():
            chunks = decode_stream(generator.autoencoder_params, generator.autoencoder, latents()[:1])
            return np.asarray(next(iter(chunks)))[0]

        job.on_preview(frame)

    return preview


def _shown(job: Job, stack: contextlib.ExitStack) -> Callable[[int, int], None]:
    """The job's on_progress, with a bar in its console."""
    bar = stack.enter_context(progress_bar(job.console))
    steps = bar.add_task("sampling", total=1, numbers="")

    def show(done, total):
        bar.update(steps, completed=done, total=total)
        job.on_progress(done, total)

    return show
