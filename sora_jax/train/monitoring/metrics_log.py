"""The metrics of a run: metrics.jsonl, trackers and a progress bar."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable

import jax
import rich.console

from sora_jax.core.growing_file import UploadedFile, open_growing
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import atomic_write, explain_os_errors
from sora_jax.train.monitoring.flops import PEAK_FLOPS
from sora_jax.train.monitoring.trackers import Gif, Trackers


class MetricsLog:
    """Writes `metrics.jsonl` in a workdir, and the same to trackers, on the first host only.

    Lines of steps after `start` are dropped: those updates were lost when the run stopped.

    Raises: InputError, here and in its methods, if a line can't be written, e.g. because the disk is full.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        start: int,
        steps: int | None,
        unit: str,
        console: rich.console.Console,
        trackers: Callable[[], Trackers] | None = None,
    ):
        """`steps` is None for a run that ends by time; `trackers` makes them, on the first host."""
        self.unit, self.steps, self.console = unit, steps, console
        self.first_host = jax.process_index() == 0
        self.peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
        self._units = self._flops = self._wait = 0.0
        self._count = 0
        self._since = time.perf_counter()
        self.bar = None
        if self.first_host:
            self.path = workdir / "metrics.jsonl"
            keep_lines(self.path, start)
            with explain_os_errors(self.path):
                workdir.mkdir(parents=True, exist_ok=True)
                self.file = open_growing(self.path)
            self.trackers = trackers() if trackers else None
            if console.is_terminal:
                self.bar = progress_bar(console)
                self.bar.start()
                self.task = self.bar.add_task("training", total=steps, completed=start, numbers="")

    def count(self, units: float, flops: float, wait: float):
        """Add a step's units and FLOPs over all hosts, and its seconds of waiting for data."""
        self._units += units
        self._flops += flops
        self._wait += wait
        self._count += 1

    def log(self, step: int, metrics: dict) -> dict[str, float]:
        """Write the metrics of a step and the speed since the last call, and return them; waits for the step."""
        values = {name: float(value) for name, value in metrics.items()}
        now = time.perf_counter()
        seconds = now - self._since
        values["step_seconds"] = seconds / self._count
        values[f"{self.unit}_per_s"] = self._units / seconds
        values["data_wait"] = self._wait / seconds
        if self.peak and not math.isnan(self._flops):
            values["mfu"] = self._flops / seconds / (self.peak * jax.device_count())
        self._units = self._flops = self._wait = self._count = 0
        self._since = now
        if not self.first_host:
            return values
        with explain_os_errors(self.path):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
        if self.trackers:
            self.trackers.scalars(step, values)
        numbers = f"loss {values['loss']:.4f}  {values[self.unit + '_per_s']:,.0f} {self.unit}/s"
        if "held_out_loss" in values:
            numbers = f"held-out loss {values['held_out_loss']:.4f}  {numbers}"
        if self.bar:
            self.bar.update(self.task, completed=step, numbers=numbers)
        else:
            of = f"/{self.steps}" if self.steps else ""
            self.console.print(f"step {step}{of}  {numbers}", highlight=False)
        return values

    @contextlib.contextmanager
    def excluded(self):
        """Exclude the time of the block from the speed."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def video(self, step: int, name: str, gif: Gif):
        """Add a sample video to the trackers; call it on the first host only."""
        if self.trackers:
            self.trackers.video(step, name, gif)

    def sync(self):
        """Bring all lines to where they outlive this process: in a bucket they are sent from time to time."""
        if self.first_host and isinstance(self.file, UploadedFile):
            self.file.sync()

    def close(self):
        if self.bar:
            self.bar.stop()
        if self.first_host:
            if self.trackers:
                self.trackers.close()
            with explain_os_errors(self.path):
                self.file.close()


def keep_lines(path: pathlib.Path, last: int):
    """Drop the lines of steps after `last`, and an incomplete last line, from a file that may be absent."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    with atomic_write(path) as temporary:
        kept = (line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last)
        temporary.write_text("".join(kept), encoding="utf-8")
