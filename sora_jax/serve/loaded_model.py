"""A trained model that is read once and makes the videos of requests."""

import dataclasses
import io
import pathlib
from collections.abc import Sequence

import jax
import rich.console

from sora_jax.config.schema import MeshSettings
from sora_jax.core.console import Console
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.data.media.video import count_frames, probe
from sora_jax.generate.generator import load_generator, video_size
from sora_jax.generate.inputs.opened_inputs import AS_LONG_AS_THE_VIDEO
from sora_jax.generate.parts import checked_settings
from sora_jax.generate.request import Request, check_request
from sora_jax.generate.sample import Job, sample_jobs
from sora_jax.generate.sampling.pipeline import check_prompts
from sora_jax.interop.adapters.weights import brought_settings
from sora_jax.serve.job_queue import Assignment
from sora_jax.serve.uploads import Limits

MAX_STEPS = 1000  # of the solver


@dataclasses.dataclass(frozen=True)
class Loading:
    """How a checkpoint is loaded.

    dtype: to compute in; "": as the checkpoint says.
    lora: adapters to add, each PATH or PATH:STRENGTH.
    name: of the model, for clients; "": that of its folder.
    """

    mesh: MeshSettings
    dtype: str = ""
    lora: Sequence[str] = ()
    name: str = ""


class LoadedModel:
    """A model in memory; programs that were compiled for a request serve the next one of the same shape.

    Args:
      checkpoint: workdir of a training run, or a released model; it is read once.
    Raises: InputError as `sample` does for a checkpoint that can't be used.
    """

    def __init__(
        self, checkpoint: pathlib.Path, loading: Loading, *, limits: Limits, console: rich.console.Console
    ):
        self.checkpoint, self.limits, self._loading = checkpoint, limits, loading
        self.name = loading.name or checkpoint.resolve().name
        with jax.set_mesh(make_mesh(loading.mesh)):
            self.generator = load_generator(checkpoint, dtype=loading.dtype or None, lora=loading.lora)
        brought, notes = brought_settings(loading.lora)
        for note in notes:
            console.print(note)
        self.defaults = dataclasses.replace(self.generator.settings.sample, **brought)

    @property
    def has_low_noise(self) -> bool:
        """Whether an expert of its own denoises low noise."""
        return self.generator.low_noise is not None

    def check(self, request: Request) -> tuple[tuple[int, int], float, int]:
        """((width, height), fps, frames) of a request's video.

        Raises: InputError for one that is wrong or over the limits, as far as it shows before it runs.
        """
        check_prompts([*request.prompts, *request.inputs.story], request.negative_prompt or "")
        check_request(request)
        settings = request.settings(self.defaults)
        height, width = video_size(settings)
        if width * height > self.limits.pixels:
            raise InputError(f"--size={settings.size}: at most {self.limits.pixels:,} pixels are made here")
        if settings.frames > self.limits.frames:
            raise InputError(f"--frames={settings.frames}: at most {self.limits.frames:,} at once are made here")
        if settings.steps > MAX_STEPS:
            raise InputError(f"--steps={settings.steps}: at most {MAX_STEPS:,} are taken here")
        checked_settings(request, self.generator.settings)
        return (width, height), settings.fps, self._frames(request, settings)

    def _frames(self, request: Request, settings) -> int:
        """How long the video will be; exact but for what the autoencoder can't take of given videos."""
        inputs, asked = request.inputs, round((request.inputs.seconds or 0) * settings.fps)
        there = [count_frames(probe(path, self.limits.media), settings.fps) for path in inputs.videos]
        if inputs.name in AS_LONG_AS_THE_VIDEO:
            return min(settings.frames, there[0])
        if inputs.name in ("extend", "connect", "loop"):
            return sum(there) + (asked or settings.frames // 2 if there else settings.frames)
        return asked or settings.frames

    def make(self, assignments: Sequence[Assignment]) -> list[list[str] | Exception]:
        """Write the videos, sampled together; what was done to the inputs of each, or why it was not made."""
        loaded = {"dtype": self._loading.dtype} if self._loading.dtype else {}
        printed = [io.StringIO() for _ in assignments]
        jobs = [
            Job(
                dataclasses.replace(
                    one.request,
                    changes={**one.request.changes, **loaded},
                    lora=tuple(self._loading.lora),
                    media=self.limits.media,
                ),
                one.out,
                Console(file=file),
                on_progress=one.on_progress,
                on_preview=one.on_preview,
            )
            for one, file in zip(assignments, printed, strict=True)
        ]
        outcomes = sample_jobs(self.checkpoint, jobs, mesh=self._loading.mesh, generator=self.generator)
        return [
            outcome if isinstance(outcome, Exception) else _notes(file.getvalue())
            for outcome, file in zip(outcomes, printed, strict=True)
        ]

    def frames_of(self, path: pathlib.Path) -> int:
        """Frames in a finished video."""
        return probe(path).frames


def _notes(printed: str) -> list[str]:
    return [line[6:] for line in printed.splitlines() if line.startswith("note: ")]
