"""One loaded model, a queue of requests for it, and the folder of finished videos; no web page in here.

`generate.sample.sample` serves one request at a time in one thread, so programs that were compiled for a request
serve the next one of the same shape.
"""

import collections
import dataclasses
import io
import pathlib
import shutil
import threading
import time
import traceback
from collections.abc import Sequence

import jax
import rich.console

from sora_jax.config.schema import MeshSettings
from sora_jax.core.console import Console
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.storage import atomic_write, content_hash
from sora_jax.generate.generator import load_generator, video_size
from sora_jax.generate.output.writer import read_metadata
from sora_jax.generate.request import Request, check_inputs
from sora_jax.generate.sample import sample
from sora_jax.generate.sampling.pipeline import check_prompts
from sora_jax.interop.adapters.weights import brought_settings
from sora_jax.serve.uploads import Limits

MAX_WAITING = 20  # requests in the queue
MAX_STEPS = 1000  # of the solver


class Stopped(Exception):
    """The job was cancelled."""


@dataclasses.dataclass
class Job:
    """A request on its way to the file `out`.

    state: waiting, running, made, failed or stopped; error: why it failed, in one line.
    done, total: steps of the solver.
    notes: what was done to the inputs.
    seconds: how long it ran.
    """

    request: Request
    out: pathlib.Path
    state: str = "waiting"
    done: int = 0
    total: int = 0
    error: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        return self.state in ("made", "failed", "stopped")


class JobQueue:
    """A model that serves requests one after the other, and knows the videos that it made.

    Args:
      checkpoint: workdir of a training run; it is read once.
      out: folder for videos and, below it, for copies of their inputs.
      dtype: to compute in, for all requests; "": as the checkpoint says.
      lora: adapters to add, as `load_generator` takes them.
    Raises: InputError as `sample` does for a checkpoint that can't be used.
    """

    def __init__(
        self,
        checkpoint: pathlib.Path,
        out: pathlib.Path,
        *,
        mesh: MeshSettings,
        limits: Limits,
        console: rich.console.Console,
        dtype: str = "",
        lora: Sequence[str] = (),
    ):
        self.checkpoint, self.out, self.mesh = checkpoint, out, mesh
        self.limits, self.console = limits, console
        with jax.set_mesh(make_mesh(mesh)):
            self.generator = load_generator(checkpoint, dtype=dtype or None, lora=lora)
        self._loaded = {"dtype": dtype} if dtype else {}
        self._lora = tuple(lora)
        brought, notes = brought_settings(lora)
        for note in notes:
            console.print(note)
        self.defaults = dataclasses.replace(self.generator.settings.sample, **brought)
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: Job | None = None
        self._change = threading.Condition()
        self._metadata: dict[tuple[str, int], dict] = {}
        threading.Thread(target=self._work, daemon=True, name="job queue").start()

    def submit(self, request: Request) -> Job:
        """The job of a new request. Raises: InputError for one that can't be served, or if too many wait."""
        self.check(request)
        with self._change:
            if len(self._waiting) >= MAX_WAITING:
                raise InputError(f"{MAX_WAITING} requests are waiting already; try again when some are served")
            job = Job(request, self._free_name(request))
            self._waiting.append(job)
            self._change.notify_all()
        return job

    def check(self, request: Request):
        """Raise InputError for a request that is wrong or over the limits, as far as it shows before it runs."""
        check_prompts([*request.prompts, *request.inputs.story], request.negative_prompt or "")
        check_inputs(request.inputs)
        settings = request.settings(self.defaults)
        height, width = video_size(settings)
        if width * height > self.limits.pixels:
            raise InputError(f"--size={settings.size}: at most {self.limits.pixels:,} pixels are made here")
        if settings.frames > self.limits.frames:
            raise InputError(f"--frames={settings.frames}: at most {self.limits.frames:,} at once are made here")
        if settings.steps > MAX_STEPS:
            raise InputError(f"--steps={settings.steps}: at most {MAX_STEPS:,} are taken here")

    def stop(self, job: Job):
        """Cancel a job: it leaves the queue, or ends after its present step."""
        job.stop.set()
        with self._change:
            if job in self._waiting:
                self._waiting.remove(job)
                job.state = "stopped"
            self._change.notify_all()

    def ahead(self, job: Job) -> int:
        """How many jobs run before this one."""
        with self._change:
            waiting = self._waiting.index(job) if job in self._waiting else 0
            return waiting + (self._running not in (None, job))

    def latest(self) -> Job | None:
        """The running job or, if there is none, the next one."""
        with self._change:
            return self._running or (self._waiting[0] if self._waiting else None)

    def wait(self, job: Job, seconds: float):
        """Wait until any job has changed, at most so long."""
        with self._change:
            if not job.over:
                self._change.wait(seconds)

    def keep(self, path: pathlib.Path) -> pathlib.Path:
        """A copy of an input that stays as long as the videos made from it, named by its content."""
        kept = self.out / "inputs" / f"{content_hash(path)}-{path.name}"
        if not kept.is_file():
            with atomic_write(kept) as temporary:
                shutil.copyfile(path, temporary)
        return kept

    def finished(self) -> list[tuple[pathlib.Path, dict]]:
        """The folder's videos that sora_jax made, newest first, and their metadata."""
        found = []
        for path in self.out.glob("[!.]*.mp4"):
            key = (path.name, path.stat().st_mtime_ns)
            if key not in self._metadata:
                try:
                    self._metadata[key] = read_metadata(path)
                except InputError:
                    self._metadata[key] = {}
            if self._metadata[key]:
                found.append((key[1], path, self._metadata[key]))
        return [(path, metadata) for _, path, metadata in sorted(found, key=lambda item: item[0], reverse=True)]

    def find(self, name: str) -> tuple[pathlib.Path, dict]:
        """One of `finished`, by the name of its file. Raises: InputError if there is none."""
        for path, metadata in self.finished():
            if path.name == name:
                return path, metadata
        raise InputError(f"{name}: no such video here")

    def _free_name(self, request):
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{request.inputs.name}-{request.seed}"
        taken = {job.out for job in self._waiting} | ({self._running.out} if self._running else set())
        path, more = self.out / f"{stem}.mp4", 1
        while path.exists() or path in taken:
            more += 1
            path = self.out / f"{stem}-{more}.mp4"
        return path

    def _work(self):
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting)
                job = self._running = self._waiting.popleft()
                job.state = "running"
                self._change.notify_all()
            began = time.perf_counter()
            state, error = self._run(job)
            with self._change:
                job.seconds, job.error = time.perf_counter() - began, error
                job.state, self._running = state, None
                self._change.notify_all()
            line = f"{job.out}: {state} after {job.seconds:.1f} s"
            self.console.print(f"{line}: {error}" if error else line)

    def _run(self, job) -> tuple[str, str]:
        """(state, error) of a job that has ended."""
        printed = io.StringIO()

        def on_progress(done, total):
            if job.stop.is_set():
                raise Stopped
            with self._change:
                job.done, job.total = done, total
                self._change.notify_all()

        try:
            sample(
                self.checkpoint,
                dataclasses.replace(
                    job.request,
                    changes={**job.request.changes, **self._loaded},
                    lora=self._lora,
                    media=self.limits.media,
                ),
                job.out,
                mesh=self.mesh,
                console=Console(file=printed),
                generator=self.generator,
                on_progress=on_progress,
            )
        except Stopped:
            return "stopped", ""
        except InputError as error:
            return "failed", str(error)
        except Exception as error:  # a bug, or too little memory: the jobs that wait are not lost
            traceback.print_exc()
            line = (str(error).splitlines() or [""])[0]
            return "failed", f"{type(error).__name__}: {line}; the terminal has more"
        finally:
            shutil.rmtree(job.out.with_name(f"{job.out.name}.windows"), ignore_errors=True)
            job.notes = [line[6:] for line in printed.getvalue().splitlines() if line.startswith("note: ")]
        return "made", ""
