"""What a run tells: a line of JSON a log step, the same numbers for TensorBoard, a progress bar."""

import contextlib
import json
import pathlib
import time

import jax
import rich.console
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import atomic_write, explain_os_errors
from sora_jax.train.monitoring.flops import PEAK_FLOPS


class Metrics:
    """Writes `metrics.jsonl` and `tensorboard/` in a workdir; on other hosts than the first it writes nothing.

    Lines of steps after `start` are dropped: they belong to updates that a stop has undone.

    Raises: InputError, here and in its methods, if a line can't be written, e.g. because the disk is full.
    """

    def __init__(self, workdir: pathlib.Path, start: int, steps: int, unit: str, console: rich.console.Console):
        self.unit, self.steps, self.console = unit, steps, console
        self.first_host = jax.process_index() == 0
        self.peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
        self._units = self._flops = self._wait = self._count = 0
        self._since = time.perf_counter()
        self.bar = None
        if self.first_host:
            self.path = workdir / "metrics.jsonl"
            keep_lines(self.path, start)
            board = workdir / "tensorboard"
            with explain_os_errors(self.path):
                board.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("a", encoding="utf-8")
                # Without SummaryWriter's thread: when that fails to write it dies, and the run waits for it.
                self.board = EventsWriter(str(board / "events"))
                self.board.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))
            if console.is_terminal:
                self.bar = progress_bar(console)
                self.bar.start()
                self.task = self.bar.add_task("training", total=steps, completed=start, numbers="")

    def count(self, units: int, flops: float, wait: float):
        """Add a step's units of work and FLOPs over all hosts, and the seconds it waited for data."""
        self._units += units
        self._flops += flops
        self._wait += wait
        self._count += 1

    def log(self, step: int, metrics: dict):
        """Log the metrics of a step, with the speed since the last log; waits until that step is done."""
        values = {name: float(value) for name, value in metrics.items()}
        now = time.perf_counter()
        seconds = now - self._since
        values["step_seconds"] = seconds / self._count
        values[f"{self.unit}_per_s"] = self._units / seconds
        values["data_wait"] = self._wait / seconds
        if self.peak and self._flops == self._flops:  # known peak, counted FLOPs (nan otherwise)
            values["mfu"] = self._flops / seconds / (self.peak * jax.device_count())
        self._units = self._flops = self._wait = self._count = 0
        self._since = now
        if not self.first_host:
            return
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        with explain_os_errors(self.path):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
            self.board.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
            self.board.flush()
        numbers = f"loss {values['loss']:.4f}  {values[self.unit + '_per_s']:,.0f} {self.unit}/s"
        if self.bar:
            self.bar.update(self.task, completed=step, numbers=numbers)
        else:
            self.console.print(f"step {step}/{self.steps}  {numbers}", highlight=False)

    @contextlib.contextmanager
    def aside(self):
        """Leave the time of the block out of the speed: it is spent on something else."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def picture(self, step: int, tag: str, image: bytes, size: tuple[int, int]):
        """Show a picture in TensorBoard, PNG or GIF, which may move; on the first host alone.

        tensorboardX's `add_video` needs moviepy, writes nothing without it, and makes this very summary.
        """
        height, width = size
        value = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=image)
        with explain_os_errors(self.path):
            summary = Summary(value=[Summary.Value(tag=tag, image=value)])
            self.board.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self.board.flush()

    def close(self):
        if self.bar:
            self.bar.stop()
        if self.first_host:
            with explain_os_errors(self.path), self.file, contextlib.closing(self.board):
                pass


def keep_lines(path: pathlib.Path, last: int):
    """Drop the lines of steps after `last`, and a line that was cut off, from a file that may not be there."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    with atomic_write(path) as temporary:
        kept = (line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last)
        temporary.write_text("".join(kept), encoding="utf-8")
