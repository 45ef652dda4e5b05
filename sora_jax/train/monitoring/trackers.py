"""Trackers: where a run's numbers and sample videos go besides metrics.jsonl."""

import importlib.util
import io
import json
import os
import pathlib
import queue
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import rich.console
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import atomic_write

FILE = "tracker_run.json"
PROJECT = "sora_jax"  # of Weights & Biases and MLflow, unless their own environment variables name another
CLOSE_SECONDS = 20  # that all trackers together get at the end of a run, which a scheduler may be waiting for
INIT_SECONDS = 30  # for Weights & Biases to answer at the start; after that a run's end may wait for it
_WAITING = 1000  # writes that a slow tracker may have open


class Gif(NamedTuple):
    """A sample video as an animated GIF, which all trackers can show: TensorBoard plays it among its images."""

    data: bytes
    height: int
    width: int
    caption: str


class Tracker(Protocol):
    """A place for a run's numbers and videos; any method may raise or block."""

    def scalars(self, step: int, values: Mapping[str, float]): ...

    def video(self, step: int, name: str, gif: Gif): ...

    def close(self): ...


class Run(NamedTuple):
    """What a tracker is told about a run.

    start: updates done before; later ones that a tracker holds were lost and are made again.
    id: stays the same when the run is continued.
    """

    workdir: pathlib.Path
    start: int
    id: str
    settings: Mapping[str, Any]


class TensorBoard:
    """Event files in `tensorboard/` of the workdir."""

    def __init__(self, run: Run):
        folder = run.workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        # Not SummaryWriter: its thread dies when it can't write, and waiting for it never ends. By itself the name
        # holds the second alone, and a start in the same second would replace the file.
        self.events = EventsWriter(str(folder / "events"), f".{run.start}")
        self.events.write_event(Event(step=run.start + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step, values):
        self._write(step, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def video(self, step, name, gif):
        # tensorboardX's `add_video` writes the same summary, but nothing at all without moviepy.
        image = Summary.Image(height=gif.height, width=gif.width, colorspace=3, encoded_image_string=gif.data)
        title = SummaryMetadata(display_name=f"{name} {gif.caption}")
        self._write(step, [Summary.Value(tag=name, image=image, metadata=title)])

    def _write(self, step, values):
        self.events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self.events.flush()

    def close(self):
        self.events.close()


class WandB:
    """A run of Weights & Biases; its environment variables choose project, server and offline mode."""

    def __init__(self, run: Run):
        import wandb

        self.wandb, folder = wandb, tempfile.gettempdir() if "://" in str(run.workdir) else str(run.workdir)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.workdir.name,
            resume="allow",
            dir=folder,
            config=dict(run.settings),
            allow_val_change=True,
            settings=wandb.Settings(
                silent=True, console="off", finish_timeout=CLOSE_SECONDS, init_timeout=INIT_SECONDS
            ),
        )

    def scalars(self, step, values):
        self.run.log(dict(values), step=step)

    def video(self, step, name, gif):
        video = self.wandb.Video(io.BytesIO(gif.data), caption=gif.caption, format="gif")
        self.run.log({name: video}, step=step)

    def close(self):
        self.run.finish()


class MLflow:
    """A run of MLflow, whose environment variables choose server and experiment; videos are artifacts."""

    def __init__(self, run: Run):
        import mlflow

        self.entities, self.client = mlflow.entities, mlflow.MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self.client.create_experiment(experiment)
        before = self.client.search_runs([place], f"tags.`{PROJECT}.run` = '{run.id}'", max_results=1)
        if before:
            self.id = before[0].info.run_id
            self.client.update_run(self.id, "RUNNING")
            return
        tags = {f"{PROJECT}.run": run.id}
        self.id = self.client.create_run(place, tags=tags, run_name=run.workdir.name).info.run_id
        params = [mlflow.entities.Param(key, str(value)) for key, value in flat(run.settings)]
        for first in range(0, len(params), 100):  # the most that a request may hold
            self.client.log_batch(self.id, params=params[first : first + 100])

    def scalars(self, step, values):
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def video(self, step, name, gif):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, f"{step}.gif")
            file.write_bytes(gif.data)
            self.client.log_artifact(self.id, str(file), name)

    def close(self):
        self.client.set_terminated(self.id)


# jsonl: metrics.jsonl and samples/, which every run writes, and nothing besides.
TRACKERS: dict[str, Callable[[Run], Tracker] | None] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "jsonl": None,
}
DEFAULT = ("tensorboard",)
_PACKAGES = ("wandb", "mlflow")  # extras of the same name


def check_trackers(names: Iterable[str]):
    """Raise InputError if a tracker is unknown or its package absent."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--tracker: no tracker {name!r}, {did_you_mean(name, TRACKERS)}")
        if name in _PACKAGES and importlib.util.find_spec(name) is None:
            raise InputError(f"--tracker={name}: not installed; pip install 'sora_jax[{name}]'")


class Trackers:
    """Passes a run's numbers and videos to its trackers, each in a thread of its own.

    A tracker that fails costs one warning, and one that is slow loses what it can't take: neither stops the run.
    """

    def __init__(
        self,
        names: Iterable[str],
        workdir: pathlib.Path,
        start: int,
        settings: Mapping[str, Any],
        console: rich.console.Console,
    ):
        made = {name: make for name in dict.fromkeys(names) if (make := TRACKERS[name])}
        run = Run(workdir, start, _run_id(workdir) if set(made) & set(_PACKAGES) else "", settings)
        self._threads = [_TrackerThread(name, make, run, console) for name, make in made.items()]

    def scalars(self, step: int, values: Mapping[str, float]):
        for thread in self._threads:
            thread.put(lambda tracker: tracker.scalars(step, values))

    def video(self, step: int, name: str, gif: Gif):
        for thread in self._threads:
            thread.put(lambda tracker: tracker.video(step, name, gif))

    def close(self):
        """Wait until everything is written, at most CLOSE_SECONDS."""
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.put(None)
        for thread in self._threads:
            thread.end(until)


class _TrackerThread(threading.Thread):
    """Writes to one tracker until it is told to end or the tracker fails."""

    def __init__(self, name, make, run, console):
        super().__init__(name=f"tracker {name}", daemon=True)
        self._make, self._run, self._console = make, run, console
        self._queue: queue.Queue = queue.Queue(_WAITING)
        self._failed = self._warned = False
        self.start()

    def run(self):
        try:
            tracker = self._make(self._run)
            while write := self._queue.get():
                write(tracker)
            tracker.close()
        except Exception as error:  # of any library, for any reason: the run is worth more than its curves
            self._failed = True
            self._warn(f"failed, and the run goes on without it: {type(error).__name__}: {error}")

    def put(self, write):
        """Queue a call of the tracker; None ends the thread."""
        if self._failed:
            return
        try:
            self._queue.put_nowait(write)
        except queue.Full:
            self._warn(f"is {_WAITING} writes behind, and loses what it can't take")

    def end(self, until: float):
        """Wait for the thread until that time of the monotonic clock."""
        self.join(max(0.0, until - time.monotonic()))
        if self.is_alive():
            self._warn(f"was not done {CLOSE_SECONDS} s after the last update; the run ended without it")

    def _warn(self, what):
        if self._warned:
            return
        self._warned = True
        line = " ".join(f"warning: {self.name} {what}".split())
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(key with dots, value) of nested settings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _run_id(workdir: pathlib.Path) -> str:
    """The id that the workdir's run has in trackers; made at its first start."""
    path = workdir / FILE
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"id": secrets.token_hex(6)}))
    return json.loads(path.read_text())["id"]
