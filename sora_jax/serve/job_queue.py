"""One loaded model, a queue of wishes for it, and the folder of what was made; no web page in here.

A wish is what `sora-jax sample` is told, and `generate.sample.sample` makes it, one at a time in one thread, so
that programs compiled for one are there for the next of the same shape.
"""

import collections
import dataclasses
import io
import pathlib
import shutil
import threading
import time
import traceback

import jax
import rich.console

from sora_jax.config.load import parse_size
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.storage import atomic_write, content_hash
from sora_jax.generate.generator import load_generator
from sora_jax.generate.pipeline import check_prompts
from sora_jax.generate.request import Request, check_request
from sora_jax.generate.sample import sample
from sora_jax.generate.writer import read_metadata
from sora_jax.serve.uploads import Limits

WAITING = 20  # wishes that may wait; more are refused
MOST_STEPS = 1000


class Stopped(Exception):
    """The one who wished for it wants it no more."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is asked for; changes: SampleSettings that differ from the model's own."""

    prompt: str
    request: Request
    seed: int = 0
    negative_prompt: str = ""
    changes: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Job:
    """A wish on its way.

    state: waiting, running, made, failed or stopped; told: why it failed, in one line.
    done, total: steps of the solver; notes: what was done to what it is given.
    """

    wish: Wish
    out: pathlib.Path
    state: str = "waiting"
    done: int = 0
    total: int = 0
    told: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        return self.state in ("made", "failed", "stopped")


class Studio:
    """A model that makes wishes come true one after another, and remembers what it made.

    Args:
      checkpoint: workdir of a training run; it is read once.
      out: folder for videos and, below it, for copies of what they were given.
      dtype: to compute in, for all wishes; "": as the checkpoint says.
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
    ):
        self.checkpoint, self.out, self.mesh = checkpoint, out, mesh
        self.limits, self.console = limits, console
        with jax.set_mesh(make_mesh(mesh)):
            self.generator = load_generator(checkpoint, dtype=dtype or None)
        self._loaded = {"dtype": dtype} if dtype else {}
        self.defaults = self.generator.settings.sample
        self._jobs: collections.deque[Job] = collections.deque()
        self._now: Job | None = None
        self._change = threading.Condition()
        self._known: dict[tuple[str, int], dict] = {}
        threading.Thread(target=self._work, daemon=True, name="studio").start()

    def submit(self, wish: Wish) -> Job:
        """Put a wish into the queue. Raises: InputError for one that can't be made, or if too many wait."""
        self.check(wish)
        with self._change:
            if len(self._jobs) >= WAITING:
                raise InputError(f"{WAITING} wishes are waiting already; try again when some are made")
            job = Job(wish, self._free_name(wish))
            self._jobs.append(job)
            self._change.notify_all()
        return job

    def check(self, wish: Wish):
        """Raise InputError for what can be seen to be wrong without making it."""
        check_prompts([wish.prompt, *wish.request.story], wish.negative_prompt)
        check_request(wish.request)
        settings = dataclasses.replace(self.defaults, **wish.changes)
        size = parse_size(settings.size, "--size")
        height, width = (size, size) if isinstance(size, int) else size
        if width * height > self.limits.pixels:
            raise InputError(f"--size={settings.size}: at most {self.limits.pixels:,} pixels are made here")
        if settings.frames > self.limits.frames:
            raise InputError(f"--frames={settings.frames}: at most {self.limits.frames:,} at once are made here")
        if settings.steps > MOST_STEPS:
            raise InputError(f"--steps={settings.steps}: at most {MOST_STEPS:,} are taken here")

    def stop(self, job: Job):
        """Make no more of it: one that waits is forgotten, one that is being made ends after its present step."""
        job.stop.set()
        with self._change:
            if job in self._jobs:
                self._jobs.remove(job)
                job.state = "stopped"
            self._change.notify_all()

    def ahead(self, job: Job) -> int:
        """How many are made before it."""
        with self._change:
            return (self._jobs.index(job) if job in self._jobs else 0) + (self._now not in (None, job))

    def latest(self) -> Job | None:
        """The wish that is being made or, if there is none, the next one."""
        with self._change:
            return self._now or (self._jobs[0] if self._jobs else None)

    def wait(self, job: Job, seconds: float):
        """Until something happened to any job, or so long."""
        with self._change:
            if not job.over:
                self._change.wait(seconds)

    def keep(self, path: pathlib.Path) -> pathlib.Path:
        """A copy of a given file that stays as long as what was made of it, named by its content."""
        kept = self.out / "inputs" / f"{content_hash(path)}-{path.name}"
        if not kept.is_file():
            with atomic_write(kept) as temporary:
                shutil.copyfile(path, temporary)
        return kept

    def made(self) -> list[tuple[pathlib.Path, dict]]:
        """The folder's videos, newest first, and what the files say of how they were made."""
        found = []
        for path in self.out.glob("[!.]*.mp4"):
            key = (path.name, path.stat().st_mtime_ns)
            if key not in self._known:
                try:
                    self._known[key] = read_metadata(path)
                except InputError:
                    self._known[key] = {}  # not of sora_jax: it is not shown
            if self._known[key]:
                found.append((key[1], path, self._known[key]))
        return [(path, metadata) for _, path, metadata in sorted(found, key=lambda item: item[0], reverse=True)]

    def find(self, name: str) -> tuple[pathlib.Path, dict]:
        """One of `made`, by its file's name alone. Raises: InputError if it is none of them."""
        for path, metadata in self.made():
            if path.name == name:
                return path, metadata
        raise InputError(f"{name}: no such video here")

    def _free_name(self, wish):
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{wish.request.name}-{wish.seed}"
        taken = {job.out for job in self._jobs} | ({self._now.out} if self._now else set())
        path, more = self.out / f"{stem}.mp4", 1
        while path.exists() or path in taken:
            more += 1
            path = self.out / f"{stem}-{more}.mp4"
        return path

    def _work(self):
        while True:
            with self._change:
                self._change.wait_for(lambda: self._jobs)
                job = self._now = self._jobs.popleft()
                job.state = "running"
                self._change.notify_all()
            began = time.perf_counter()
            state, told = self._make(job)
            with self._change:
                job.seconds, job.told = time.perf_counter() - began, told
                job.state, self._now = state, None
                self._change.notify_all()
            line = f"{job.out}: {state} after {job.seconds:.1f} s"
            self.console.print(f"{line}: {told}" if told else line, highlight=False, markup=False)

    def _make(self, job):
        """How a job ended, and what is to tell of it."""
        told = io.StringIO()
        wish = job.wish

        def tell(done, total):
            if job.stop.is_set():
                raise Stopped
            with self._change:
                job.done, job.total = done, total
                self._change.notify_all()

        try:
            sample(
                self.checkpoint,
                [wish.prompt],
                job.out,
                changes=wish.changes | self._loaded,
                negative_prompt=wish.negative_prompt,
                seed=wish.seed,
                mesh=self.mesh,
                console=rich.console.Console(file=told, width=10_000),
                request=wish.request,
                generator=self.generator,
                tell=tell,
            )
        except Stopped:
            return "stopped", ""
        except InputError as error:
            return "failed", str(error)
        except Exception as error:  # a bug, or too little memory: this wish is lost, and not those that wait
            traceback.print_exc()
            line = (str(error).splitlines() or [""])[0]
            return "failed", f"{type(error).__name__}: {line}; the terminal has more"
        finally:
            shutil.rmtree(job.out.with_name(f"{job.out.name}.windows"), ignore_errors=True)
            job.notes = [line[6:] for line in told.getvalue().splitlines() if line.startswith("note: ")]
        return "made", ""
