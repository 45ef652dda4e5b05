"""What looks on while a run trains, beside its metrics: a heartbeat, sample videos, profiles, and a last line."""

import collections
import json
import pathlib
import sys
import time

import jax
import rich.console

from sora_jax.cluster.heartbeat import BUSY, DONE, PREEMPTED, STARTING, TRAINING, Heartbeat
from sora_jax.config.schema import Settings
from sora_jax.report.page import duration
from sora_jax.train.monitoring.metrics import Metrics
from sora_jax.train.monitoring.profiler import Profiler
from sora_jax.train.monitoring.run_history import Starts, summary


class Watch:
    """Is told where the run is; see `train.loop`."""

    def __init__(
        self, settings: Settings, workdir: pathlib.Path, mesh: jax.sharding.Mesh, console: rich.console.Console
    ):
        """Before anything is written. Raises: InputError if the samples that are wished for can't be made."""
        self.settings, self.workdir, self.console = settings, workdir, console
        self.began = time.time()
        self.heartbeat = Heartbeat()
        self.heartbeat.beat(STARTING)
        self.profiler = Profiler(workdir, settings.train.profile, settings.train.log_every, console)
        self.samples = self.starts = None
        self._seen = collections.Counter()
        if settings.train.sample_every:
            # Matplotlib and PyAV take a second to import.
            from sora_jax.train.monitoring.samples import Samples, check_samples

            check_samples(settings, mesh)
            self.samples = Samples(settings, workdir, console)

    def begin(self, start: int, frozen: dict, metrics: Metrics, unit: str):
        """The state is there, after `start` updates."""
        self.frozen, self.metrics, self.unit = frozen, metrics, unit
        self.heartbeat.start = start
        self.heartbeat.beat(STARTING, start)
        if jax.process_index() == 0 and start < self.settings.train.steps:
            self.starts = Starts(self.workdir, start, self.began)

    def before(self, step: int):
        """An update is about to begin."""
        self.profiler.before(step)

    def meets(self, batch):
        """The update's batch is there. One of a new shape is compiled for, which takes as long as a start."""
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        self._seen[shapes] += 1
        # Twice: the state may lie otherwise after the run's first update than before it.
        if self._seen[shapes] <= 2:
            self.heartbeat.beat(STARTING)

    def after(self, step: int, state, *, last: bool):
        """It is on its way, or done; `last`: no other follows."""
        # The second update may be compiled as well: its state is the first one's.
        doing = BUSY if last else TRAINING if step > self.heartbeat.start + 1 else STARTING
        self.heartbeat.beat(doing, step)
        self.profiler.after(step, state, last=last)
        done = step == self.settings.train.steps
        # Who told a run to end waits for it: then it makes none.
        if self.samples and (done or (not last and step % self.settings.train.sample_every == 0)):
            self.heartbeat.beat(BUSY)
            with self.metrics.aside():
                self.samples.make(step, state.ema, self.frozen, self.metrics, lambda: self.heartbeat.beat(BUSY))
            self.heartbeat.beat(doing)

    def close(self):
        """No update follows, for whatever reason."""
        self.profiler.close()
        if self.starts and isinstance(sys.exception(), KeyboardInterrupt):
            self.starts.end(self.heartbeat.step)

    def end(self, step: int):
        """The run has ended in order, and all is on the disk: tell what it came to."""
        done = step >= self.settings.train.steps
        if self.starts:
            self.starts.end(step)
            lines = [json.loads(line) for line in self.metrics.path.read_text().splitlines()]
            values = summary(lines, step, self.starts.seconds, len(self.starts.starts), self.unit)
            words = [
                f"{step:,} steps",
                f"{values[self.unit]:,.0f} {self.unit}",
                duration(values["hours"] * 3600),
                *([f"MFU {values['mfu']:.1%}"] if "mfu" in values else []),
                f"goodput {values['goodput']:.1%}",
                f"{values['restarts']} restarts",
            ]
            told = "done" if done else "told to end, and saved; the same command goes on"
            self.console.print(f"{told}: {', '.join(words)}", highlight=False, soft_wrap=True)
        self.heartbeat.beat(DONE if done else PREEMPTED, step)
