"""Monitoring of a run besides its metrics: heartbeat, sample videos, profiles, run history and a summary."""

import collections
import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
import rich.console
from jax.experimental import multihost_utils

from sora_jax.cluster.heartbeat import BUSY, DONE, PREEMPTED, STARTING, TRAINING, Heartbeat
from sora_jax.config.schema import Settings
from sora_jax.report.page import duration
from sora_jax.train.monitoring.held_out_loss import HeldOutLoss
from sora_jax.train.monitoring.metrics_log import MetricsLog
from sora_jax.train.monitoring.profiler import Profiler
from sora_jax.train.monitoring.run_history import RunHistory, run_totals


class RunMonitor:
    """Follows a run; `train.loop` calls it at each point of an update."""

    def __init__(
        self, settings: Settings, workdir: pathlib.Path, mesh: jax.sharding.Mesh, console: rich.console.Console
    ):
        """Writes nothing into the workdir. Raises: InputError if the sample videos can't be made."""
        self.settings, self.workdir, self.console = settings, workdir, console
        self.began, self._clock = time.time(), time.monotonic()
        self.heartbeat = Heartbeat()
        self.heartbeat.beat(STARTING)
        self.profiler = Profiler(workdir, settings.train.profile, settings.train.log_every, console)
        self.samples: Any = None  # SampleVideos, imported where it is used
        self.history: RunHistory | None = None
        self.time_is_up = False
        self._shapes_seen = collections.Counter()
        if settings.train.sample_every:
            # Matplotlib and PyAV take a second to import.
            from sora_jax.train.monitoring.sample_videos import SampleVideos, check_samples

            check_samples(settings, mesh)
            self.samples = SampleVideos(settings, workdir, console)

    def begin(self, start: int, frozen_params: dict, metrics: MetricsLog, unit: str):
        """The state is ready, after `start` updates."""
        self.frozen_params, self.metrics, self.unit = frozen_params, metrics, unit
        self.heartbeat.start = start
        self.heartbeat.beat(STARTING, start)
        if jax.process_index() == 0 and start < self.settings.train.steps:
            self.history = RunHistory(self.workdir, start, self.began, lambda: time.monotonic() - self._clock)

    def check_time(self, step: int) -> bool:
        """Whether the time budget is spent, the same on all hosts; after update `step`, 0 before the first."""
        minutes, alone = self.settings.train.minutes, jax.process_count() == 1
        if minutes and (alone or step % self.settings.train.log_every == 0):
            spent = bool(self.history) and self.history.busy_seconds >= 60 * minutes
            self.time_is_up = spent if alone else bool(multihost_utils.broadcast_one_to_all(np.int32(spent)))
        return self.time_is_up

    def saved(self):
        """A checkpoint is being written."""
        if self.history:
            self.history.save()

    def before_step(self, step: int):
        """An update is about to start."""
        self.profiler.before(step)

    def on_batch(self, batch):
        """The batch of the update was read. A new shape is compiled, which takes as long as a start."""
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        self._shapes_seen[shapes] += 1
        # Compiled twice: the first update can change the state's layout.
        if self._shapes_seen[shapes] <= 2:
            self.heartbeat.beat(STARTING)

    def after_step(self, step: int, state, *, last: bool):
        """The update was queued, and may be done; `last`: no other follows."""
        # The second update can be compiled as well, for the layout of the first one's state.
        doing = BUSY if last else TRAINING if step > self.heartbeat.start + 1 else STARTING
        self.heartbeat.beat(doing, step)
        self.profiler.after(step, state, last=last)
        done = step == self.settings.train.steps or self.time_is_up
        # A run that was told to stop makes none: its scheduler waits.
        if self.samples and (done or (not last and step % self.settings.train.sample_every == 0)):
            self.heartbeat.beat(BUSY)
            with self.metrics.excluded():
                self.samples.make(
                    step, state.ema, self.frozen_params, self.metrics, lambda: self.heartbeat.beat(BUSY)
                )
            self.heartbeat.beat(doing)

    def held_out_loss(self, state, held_out: HeldOutLoss) -> dict:
        """{"held_out_loss": of the state's averaged weights}; its time does not count in the speed."""
        jax.block_until_ready(state.step)
        self.heartbeat.beat(BUSY)
        with self.metrics.excluded():
            found = {"held_out_loss": held_out.measure(state.ema, self.frozen_params)}
        self.heartbeat.beat(TRAINING)
        return found

    def close(self):
        """No update follows, because the run is done, stopped or failed."""
        self.profiler.close()
        if self.history and isinstance(sys.exception(), KeyboardInterrupt):
            self.history.end(self.heartbeat.step)

    def end(self, step: int):
        """The run ended in order and everything is on the disk: print a summary."""
        done = step >= self.settings.train.steps or self.time_is_up
        if self.history:
            self.history.end(step)
            lines = [json.loads(line) for line in self.metrics.path.read_text().splitlines()]
            totals = run_totals(lines, step, self.history.seconds, len(self.history.starts), self.unit)
            parts = [
                f"{step:,} steps",
                f"{totals[self.unit]:,.0f} {self.unit}",
                duration(totals["hours"] * 3600),
                *([f"MFU {totals['mfu']:.1%}"] if "mfu" in totals else []),
                f"goodput {totals['goodput']:.1%}",
                f"{totals['restarts']} restarts",
            ]
            outcome = "done" if done else "stopped and saved; the same command continues"
            self.console.print(f"{outcome}: {', '.join(parts)}", highlight=False, soft_wrap=True)
        self.heartbeat.beat(DONE if done else PREEMPTED, step)
