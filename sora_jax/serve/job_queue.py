"""The queue of jobs for one model: those that wait run together, in a thread, and outlive the process."""

import collections
import dataclasses
import functools
import pathlib
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import rich.console

from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.generate.request import Request
from sora_jax.serve.api.previews import encoded
from sora_jax.serve.jobs import COMPLETED, FAILED, QUEUED, RUNNING, Job, JobStore
from sora_jax.serve.priority import give_way

MAX_WAITING = 20  # requests in the queue
MAX_FAILED = 1000  # failed jobs that are remembered
MAX_ATTEMPTS = 2  # of a job that the end of the process interrupted: it may be what ended it
WATCHED_SECONDS = 5.0  # after which somebody who asked for a preview is taken to be gone
PREVIEW_SECONDS = 1.0  # between two previews
SWEEP_SECONDS = 3600  # between two looks for what is too old


class Stopped(Exception):
    """The job was deleted while it ran."""


class StorageError(Exception):
    """A request could not be recorded."""


class QueueFull(InputError):
    """Too many requests wait.

    retry_after: seconds until there may be room.
    """

    def __init__(self, retry_after: int):
        super().__init__(f"{MAX_WAITING} requests are waiting already; try again when some are served")
        self.retry_after = retry_after


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A video to be made.

    on_progress: to be called after each step with the steps that are done, and of all; an exception that it raises
      ends this one alone.
    on_preview: to be called after each step with a function: the first frame, [H, W, 3] uint8.
    """

    request: Request
    out: pathlib.Path
    on_progress: Callable[[int, int], None]
    on_preview: Callable[[Callable[[], np.ndarray]], None]


class Model(Protocol):
    """Makes the videos of requests."""

    name: str
    defaults: SampleSettings

    @property
    def has_low_noise(self) -> bool:
        """Whether an expert of its own denoises low noise."""

    def check(self, request: Request) -> tuple[tuple[int, int], float, int]:
        """((width, height), fps, frames) of a request's video. Raises: InputError for one that can't be served."""

    def make(self, assignments: Sequence[Assignment]) -> list[list[str] | Exception]:
        """Write the videos; what is to be said of each, or why it was not made."""

    def frames_of(self, path: pathlib.Path) -> int:
        """Frames in a finished video."""


@dataclasses.dataclass(frozen=True)
class Retention:
    """How long finished videos stay; None: for ever.

    days: after the job was over; gib: of all videos together, above which the oldest go.
    """

    days: float | None = None
    gib: float | None = None


class JobQueue:
    """All jobs of an output folder, by id.

    Jobs that an earlier process left unfinished are made again, with their seeds and so with the same bits.

    Args:
      on_end: called in the queue's thread with each job that is over, and how many seconds it ran.
    """

    def __init__(
        self,
        model: Model,
        store: JobStore,
        *,
        console: rich.console.Console,
        retention: Retention = Retention(),
        on_end: Callable[[Job, float], None] = lambda job, seconds: None,
    ):
        self.model, self.store, self.console = model, store, console
        self.retention, self._on_end = retention, on_end
        self._change = threading.Condition()
        self._jobs = {job.id: job for job in store.load()}
        self._waiting = collections.deque(job for job in self._jobs.values() if not job.over and self._resume(job))
        self._running: tuple[Job, ...] = ()
        self._mean_seconds = 1.0
        self._swept = 0.0
        self.thread = threading.Thread(target=self._work, daemon=True, name="job queue")
        self.thread.start()

    @property
    def alive(self) -> bool:
        return self.thread.is_alive()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def seconds_left(self, job: Job) -> float:
        """An estimate of when a job will be over, from those before."""
        return self._mean_seconds * (self.ahead(job) + 1)

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, request: Request, *, source: str | None = None) -> Job:
        """The job of a new request; its record is on the disk.

        Raises: InputError for one that can't be served; QueueFull if too many wait;
          StorageError if it can't be recorded.
        """
        size, fps, frames = self.model.check(request)
        with self._change:
            self.check_room()
            token, now = secrets.token_hex(16), time.time()
            stem = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{request.inputs.name}-{request.seed}"
            job = Job(f"video_{token}", request, f"{stem}-{token[:6]}.mp4", now, size, fps, frames, source=source)
            try:
                self.store.save(job)
            except (InputError, OSError) as error:
                self.console.print(str(error), highlight=False)
                raise StorageError("the server can't keep this request now; its log says why") from error
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._change.notify_all()
        return job

    def check_room(self):
        """Raise QueueFull if too many wait."""
        if len(self._waiting) >= MAX_WAITING:
            raise QueueFull(max(1, min(60, round(self._mean_seconds))))

    def get(self, id: str) -> Job | None:
        return self._jobs.get(id)

    def newest(self) -> Iterator[Job]:
        """All jobs, the newest first."""
        return reversed(list(self._jobs.values()))

    def ahead(self, job: Job) -> int:
        """How many jobs run before this one. It takes no lock: the event loop calls it."""
        waiting = tuple(self._waiting)
        return waiting.index(job) + len(self._running) if job in waiting else 0

    def delete(self, id: str) -> bool:
        """Whether there was such a job. A running one ends after its present step."""
        with self._change:
            job = self._jobs.pop(id, None)
            if job is None:
                return False
            job.stop.set()
            if job in self._waiting:
                self._waiting.remove(job)
            self.store.remove(job)
            return True

    def release(self):
        """Leave the running jobs to the next process: an end that was asked for is no fault of theirs."""
        with self._change:
            for job in self._running:
                job.attempts -= 1
                self._save(job)

    def wait(self, job: Job, seconds: float):
        """Wait until any job has changed, at most so long."""
        with self._change:
            if not job.over:
                self._change.wait(seconds)

    def _resume(self, job: Job) -> bool:
        """Whether a job of an earlier process has to be made; its record says how it stands."""
        if self.store.video(job).is_file():  # it appears when it is complete
            self._finish(job, COMPLETED)
            return False
        if job.attempts >= MAX_ATTEMPTS:
            told = f"the server ended {job.attempts} times while it made this video; ask for it again"
            self._finish(job, FAILED, ("server_restarted", told))
            return False
        job.state, job.done, job.total = QUEUED, 0, 0
        return True

    def _work(self):
        give_way()
        while True:
            jobs = self._take()
            began = time.perf_counter()
            outcomes = self._make(jobs)
            seconds = time.perf_counter() - began
            with self._change:
                self._mean_seconds += 0.2 * (seconds / len(jobs) - self._mean_seconds)
                self._running = ()
                for job, outcome in zip(jobs, outcomes, strict=True):
                    try:
                        self._end(job, outcome, seconds)
                    except Exception as error:  # the folder does not answer: the next job may be luckier
                        job.state, job.error = FAILED, self._server_error(error)
                self._sweep()
                self._change.notify_all()

    def _take(self) -> tuple[Job, ...]:
        """The jobs that run next: the first that waits, and those that may share its run of the solver."""
        with self._change:
            while not self._waiting:
                self._change.wait(SWEEP_SECONDS)
                self._sweep()
            first = self._waiting.popleft()
            others = (
                []
                if first.request.inputs.long
                else [j for j in self._waiting if self._kind(j) == self._kind(first)]
            )
            for job in others:
                self._waiting.remove(job)
            jobs = self._running = (first, *others)
            for job in jobs:
                job.state, job.attempts = RUNNING, job.attempts + 1
                self._save(job)
        return self._running

    def _kind(self, job: Job) -> tuple:
        """Equal for jobs that may share a run; the others would only delay its end."""
        settings = job.request.settings(self.model.defaults)
        return settings.steps, settings.solver, job.request.inputs.long

    def _make(self, jobs: Sequence[Job]) -> list[list[str] | Exception]:
        """The notes of each job, or why it was not made."""

        def report(job, done, total):
            if job.stop.is_set():
                raise Stopped
            job.done, job.total = done, total

        def preview(job, frame):
            now = time.monotonic()
            if now - job.looked < WATCHED_SECONDS and now - job.previewed > PREVIEW_SECONDS:
                job.preview, job.previewed = encoded(frame(), "webp"), now

        assignments = [
            Assignment(
                job.request,
                self.store.video(job),
                functools.partial(report, job),
                functools.partial(preview, job),
            )
            for job in jobs
        ]
        try:
            return self.model.make(assignments)
        except Exception as error:  # a bug, or too little memory: the jobs that wait are not lost
            return [error] * len(jobs)

    def _end(self, job: Job, outcome: list[str] | Exception, seconds: float):
        error = None
        if isinstance(outcome, InputError):
            error = ("generation_failed", str(outcome))
        elif isinstance(outcome, Exception) and not isinstance(outcome, Stopped):
            error = self._server_error(outcome)
        state = FAILED if error else COMPLETED
        if job.stop.is_set():
            self.store.remove_video(job)
            state = "deleted"
        else:
            job.notes = tuple(outcome) if isinstance(outcome, list) else ()
            self._finish(job, state, error)
            self._on_end(job, seconds)
        line = f"{job.id}: {state} after {seconds:.1f} s"
        self.console.print(f"{line}: {error[1]}" if error else line, highlight=False)

    def _server_error(self, error: Exception) -> tuple[str, str]:
        """The (code, message) of an error whose details are for the log alone."""
        traceback.print_exception(error)
        return "server_error", "the server failed to make this video; its log says why"

    def _finish(self, job: Job, state: str, error: tuple[str, str] | None = None):
        video = self.store.video(job)
        if state == COMPLETED:
            job.frames = self.model.frames_of(video)
        else:
            self.store.remove_video(job)
        job.state, job.error, job.completed, job.preview = state, error, time.time(), b""
        self._save(job)

    def _save(self, job: Job):
        try:
            self.store.save(job)
        except InputError as error:  # a full disk: the job goes on, and is made again after a restart
            self.console.print(f"{job.id}: {error}", highlight=False)

    def _sweep(self):
        """Remove what is kept no longer; what can't be removed now is tried again."""
        try:
            self._remove_old()
        except (InputError, OSError) as error:
            self.console.print(f"{self.store.out}: {error}", highlight=False)

    def _remove_old(self):
        over = [job for job in self._jobs.values() if job.over]
        failed = [job for job in over if job.state == FAILED]
        old = failed[: max(0, len(failed) - MAX_FAILED)]
        if self.retention.days is not None:
            limit = time.time() - self.retention.days * 86_400
            old += [job for job in over if job.completed < limit]
        if self.retention.gib is not None:
            room = self.retention.gib * 2**30
            for job in reversed(over):
                room -= self.store.bytes_of(job)
                old += [job] if room < 0 else []
        for job in {job.id: job for job in old}.values():
            del self._jobs[job.id]
            self.store.remove(job)
        if time.time() - self._swept > SWEEP_SECONDS:
            self._swept = time.time()
            self.store.remove_unused_inputs(self._jobs.values(), older=SWEEP_SECONDS)
