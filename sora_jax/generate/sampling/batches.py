"""Many clips in few runs of the solver: which of them share a run, and whose progress it is."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence

import jax
import numpy as np

from sora_jax.core.mesh import num_shards
from sora_jax.generate.generator import Generator
from sora_jax.generate.sampling.clips import Clip, Layout, pack
from sora_jax.generate.sampling.pipeline import batch_size, sample_clips

TOKEN_MULTIPLE = 64  # of a row's length, on each part of the mesh that holds some of it


class Progress:
    """The steps of some clips, and whether these are still wanted.

    Args:
      on_progress: called after each step with the number of steps that are done, and of all. An exception that it
        raises stops these clips alone, and is kept as `error`.
      on_prediction: called after each step with a function: the latents of a clip as the step predicts them.
    """

    def __init__(
        self,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        on_prediction: Callable[[Callable[[], np.ndarray]], None] = lambda latents: None,
    ):
        self.on_prediction = on_prediction
        self.done = self.total = 0
        self.error: Exception | None = None
        self._on_progress = on_progress

    def advance(self, done: int | None = None):
        """Count one more step, or so many in all."""
        if self.error is None:
            self.done = self.done + 1 if done is None else done
            try:
                self._on_progress(self.done, self.total)
            except Exception as error:  # the caller of the run has clips of others to sample
                self.error = error


class Stopped(Exception):
    """No clip of a run is wanted any more."""


@dataclasses.dataclass
class Run:
    """One run of the solver.

    numbers: of its clips, in the layout's order.
    latents: by the number of the clip, once it has run; an exception if it failed.
    """

    numbers: Sequence[int]
    layout: Layout
    steps: int
    latents: dict[int, np.ndarray] | Exception | None = None


class Batches:
    """Clips that are sampled in as few runs as the mesh allows, each run when a clip of it is asked for.

    Clips of all sizes and seeds run together if they have the same model, solver and number of steps. Those with
    pictures beside the noise, and loops, share a run with their like only.
    """

    def __init__(self):
        self._clips: list[tuple[Generator, Clip, Progress]] = []
        self._run_of: dict[int, Run] = {}

    def add(self, generator: Generator, clip: Clip, progress: Progress) -> int:
        """The number of a new clip, to be sampled with this model; before `plan`."""
        self._clips.append((generator, clip, progress))
        return len(self._clips) - 1

    def plan(self):
        """Divide the clips into runs, and tell their progress how many steps these have."""
        kinds: dict[Hashable, list[int]] = {}
        for n, (generator, clip, _) in enumerate(self._clips):
            kinds.setdefault(_kind(generator, clip), []).append(n)
        for numbers in kinds.values():
            for run in self._runs(numbers):
                self._run_of |= dict.fromkeys(run.numbers, run)
        for run in self.runs:
            for progress in self._watching(run):
                progress.total += run.steps

    @property
    def runs(self) -> list[Run]:
        return list({id(run): run for run in self._run_of.values()}.values())

    def latents(self, number: int) -> np.ndarray:
        """Latents of a clip, [f, h, w, C] float32.

        Raises: what stopped the clip, or its run.
        """
        _, _, progress = self._clips[number]
        run = self._run_of[number]
        if progress.error:
            raise progress.error
        if run.latents is None:
            run.latents = self._sample(run)
        if progress.error:
            raise progress.error
        if isinstance(run.latents, Exception):
            raise run.latents
        return run.latents[number]

    def free(self, number: int):
        """Forget the latents of a clip."""
        if isinstance(found := self._run_of[number].latents, dict):
            found.pop(number, None)

    def _runs(self, numbers: Sequence[int]) -> list[Run]:
        """The runs of clips of one kind."""
        generator, first, _ = self._clips[numbers[0]]
        clips = [self._clips[n][1] for n in numbers]
        sizes = [math.prod(clip.grid(generator)) for clip in clips]
        steps = len(first.schedule(generator).steps) if first.strength else 0
        mesh, alike = jax.sharding.get_mesh().shape, _alike(clips)
        parts, tokens = num_shards("batch", mesh), num_shards("tokens", mesh)
        if alike and len(clips) <= parts:
            rows = batch_size(len(clips), first.settings.guidance)
            group = list(range(len(clips)))
            layouts = [Layout(tuple((n,) for n in group + group[-1:] * (rows - len(group))), sizes[0])]
        else:
            layouts = pack(sizes, parts, alike=alike, multiple=TOKEN_MULTIPLE * tokens)
        return [_numbered(layout, numbers, steps) for layout in layouts]

    def _sample(self, run: Run) -> dict[int, np.ndarray] | Exception:
        watching = self._watching(run)

        def on_step(time, velocity):
            for progress in watching:
                progress.advance()
            if all(progress.error for progress in watching):
                raise Stopped

        def on_prediction(latents):
            for place, n in enumerate(run.numbers):
                self._clips[n][2].on_prediction(lambda place=place: latents()[place])

        generator = self._clips[run.numbers[0]][0]
        clips = [self._clips[n][1] for n in run.numbers]
        try:
            made = sample_clips(generator, clips, run.layout, on_step, on_prediction)
        except (Stopped, jax.errors.JaxRuntimeError) as error:  # the second one: too little memory
            return error
        return dict(zip(run.numbers, made, strict=True))

    def _watching(self, run: Run) -> list[Progress]:
        return list(dict.fromkeys(self._clips[n][2] for n in run.numbers))


def _kind(generator: Generator, clip: Clip) -> Hashable:
    """Equal for clips that may share a run."""
    if not clip.strength:
        return id(clip)
    steps = clip.schedule(generator).steps
    kind = id(generator), clip.settings.solver, tuple((step.low_noise, step.cached) for step in steps)
    if clip.loop or generator.settings.transformer.condition_channels:  # they are alone in their rows
        return *kind, clip.loop, clip.settings, clip.strength
    return kind


def _alike(clips: Sequence[Clip]) -> bool:
    """Whether clips can lie in rows of their own, as they have all but prompt and noise in common."""
    return all((clip.settings, clip.strength) == (clips[0].settings, clips[0].strength) for clip in clips)


def _numbered(layout: Layout, numbers: Sequence[int], steps: int) -> Run:
    """The run of a layout, whose clips are then numbered from 0."""
    mine = list(dict.fromkeys(n for row in layout.rows for n in row))
    rows = tuple(tuple(mine.index(n) for n in row) for row in layout.rows)
    return Run([numbers[n] for n in mine], dataclasses.replace(layout, rows=rows), steps)
