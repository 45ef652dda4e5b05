"""The training loop, the same for every objective."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import rich.console

from sora_jax.checkpoint.manager import Checkpoints
from sora_jax.checkpoint.restore import abstract_on_mesh
from sora_jax.cluster.agreement import assert_equal_across_hosts, run_on_first_host
from sora_jax.cluster.preemption import preemption
from sora_jax.config.schema import Settings
from sora_jax.core.mesh import make_mesh
from sora_jax.core.random_keys import seed_key
from sora_jax.core.storage import as_path
from sora_jax.models.layers.params import count_params
from sora_jax.train.autoencoder_statistics import save_autoencoder
from sora_jax.train.bucket_lock import lock_of
from sora_jax.train.init_from import init_from
from sora_jax.train.monitoring.held_out_loss import HeldOutLoss
from sora_jax.train.monitoring.loss_monitor import LossMonitor
from sora_jax.train.monitoring.metrics_log import MetricsLog
from sora_jax.train.monitoring.run_monitor import RunMonitor
from sora_jax.train.monitoring.trackers import DEFAULT as DEFAULT_TRACKERS
from sora_jax.train.monitoring.trackers import Trackers, check_trackers
from sora_jax.train.objectives.registry import make_objective
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.setup import attention_kernel, check_batch, open_data, write_workdir
from sora_jax.train.state import TrainState, abstract_state, init_state
from sora_jax.train.step import make_step


def train(
    settings: Settings,
    workdir: pathlib.Path,
    *,
    console: rich.console.Console,
    on_metrics: Callable[[int, dict], None] = lambda step, values: None,
    trackers: Sequence[str] = DEFAULT_TRACKERS,
) -> TrainState:
    """Train, or continue training, until `train.steps` updates are done.

    SIGTERM to any process ends the run sooner: all processes save after the same update.

    Args:
      workdir: folder for everything that the run writes.
      on_metrics: called with each logged update and its metrics, as they are in metrics.jsonl.
      trackers: names of TRACKERS.
    Returns: the last state.
    Raises: InputError for settings, data or a workdir that do not fit together.
    """
    trainer = Trainer(settings, as_path(workdir), console, on_metrics, trackers)
    with (
        jax.set_mesh(trainer.mesh),
        trainer.lock(),
        Checkpoints(workdir, settings.train.keep, settings.train.keep_every) as checkpoints,
        preemption(checkpoints.latest() or 0) as must_stop,
    ):
        state = trainer.start_or_resume(checkpoints)
        state = trainer.run_updates(state, checkpoints, must_stop)
        done = state.step == settings.train.steps or trainer.monitor.time_is_up
        if settings.objective == "autoencoder" and done:
            folder = trainer.workdir / "autoencoder"
            save_autoencoder(settings, state.ema["autoencoder"], trainer.data.stream, folder)
    trainer.monitor.end(int(state.step))
    return state


class Trainer:
    """A run that is ready to start.

    Making one writes nothing, so that a mistake of input leaves no trace.
    """

    def __init__(
        self,
        settings: Settings,
        workdir: pathlib.Path,
        console: rich.console.Console,
        on_metrics: Callable[[int, dict], None],
        trackers: Sequence[str],
    ):
        check_trackers(trackers)
        self.settings, self.workdir, self.console = settings, workdir, console
        self.on_metrics, self.trackers = on_metrics, trackers
        self.mesh = make_mesh(settings.mesh)
        check_batch(settings, self.mesh)
        self.workdir_lock = lock_of(workdir)
        self.monitor = RunMonitor(settings, workdir, self.mesh, console)
        self.data = open_data(settings, workdir, self.mesh)
        assert_equal_across_hosts({f"the data set {settings.data.path}": self.data.hash})
        self.objective = make_objective(settings)
        self.optimizer = make_optimizer(
            settings.optimizer, settings.train.steps, self.objective.players, self.objective.rates
        )
        self.step = make_step(self.objective, self.optimizer, settings)
        self.held_out = HeldOutLoss(settings, self.objective, self.mesh)
        with jax.set_mesh(self.mesh):
            self.abstract = abstract_on_mesh(abstract_state(self.objective, self.optimizer))
            self.frozen_params = self.objective.frozen_params()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """The lock on the workdir, held by the first host. Raises: InputError if another run holds it."""
        with contextlib.ExitStack() as stack:
            run_on_first_host(lambda: stack.enter_context(self.workdir_lock))
            yield

    def start_or_resume(self, checkpoints: Checkpoints) -> TrainState:
        """The state of the last checkpoint; without one, a new state in a new workdir."""
        self._tell(*self.data.stream.notes, *([self.held_out.note] if self.held_out.note else []))
        latest = checkpoints.latest()
        assert_equal_across_hosts({f"the last checkpoint in {self.workdir}": str(latest)})
        state = self._start() if latest is None else self._resume(checkpoints)
        state = jax.block_until_ready(state)
        attention = ""
        if self.settings.objective != "autoencoder":
            attention = f", attention {attention_kernel(self.settings, self.mesh)}"
        self.console.print(
            f"{self.settings.objective}: {count_params(state.params):,} parameters on {jax.device_count()} "
            f"{jax.devices()[0].device_kind} devices{attention}, {self.data.stream.clips} clips, "
            f"{self.data.stream.fill:.0%} of each row filled, step {state.step} of {self.settings.train.steps}",
            highlight=False,
            soft_wrap=True,
        )
        return state

    def _metrics_log(self, start: int) -> MetricsLog:
        values = dataclasses.asdict(self.settings)
        return MetricsLog(
            self.workdir,
            start,
            None if self.settings.train.minutes else self.settings.train.steps,
            self.objective.unit,
            self.console,
            lambda: Trackers(self.trackers, self.workdir, start, values, self.console),
        )

    def _start(self) -> TrainState:
        run_on_first_host(lambda: write_workdir(self.workdir, self.data.records, self.settings))
        # Checkpoints of several processes need a shared disk.
        written = "there" if (self.workdir / "settings.json").exists() else "not there"
        assert_equal_across_hosts({f"settings.json in {self.workdir}": written})
        state = init_state(self.objective, self.optimizer, seed_key(self.settings.train.seed))
        return init_from(self.settings, state) if self.settings.train.init_from else state

    def _resume(self, checkpoints: Checkpoints) -> TrainState:
        state, trained_on, notes = checkpoints.restore(self.abstract, self.settings)
        if trained_on != self.data.hash:
            notes.append(f"{self.settings.data.path} is not the data set of the steps before")
        self._tell(*notes)
        return state

    def _tell(self, *notes: str):
        for note in notes:
            self.console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)

    def run_updates(
        self, state: TrainState, checkpoints: Checkpoints, must_stop: Callable[[int], bool]
    ) -> TrainState:
        """Train from `state` to the last update, or until `must_stop(step)`, saving on the way.

        Args:
          state: donated to the first update.
        """
        settings, start = self.settings.train, int(state.step)
        metrics = self._metrics_log(start)
        self.monitor.begin(start, self.frozen_params, metrics, self.objective.unit)
        losses = LossMonitor(self.workdir, settings.bad_steps, self.data.stream.sources_at, self.console)

        def report(n, values, logged):
            losses.update(n, values)
            if logged:
                self.on_metrics(n, metrics.log(n, values | {"skipped": losses.take_skipped()}))

        batches = self.data.stream.iterate(start)
        # A budget that starting takes up still makes one update, so that there is a checkpoint.
        end = start if start and self.monitor.check_time(0) else settings.steps
        try:
            pending = None
            for n in range(start + 1, end + 1):
                self.monitor.before_step(n)
                batch, wait = timed_next(batches)
                self.monitor.on_batch(batch)
                units, flops = self.objective.work(batch)
                # Wait until the batch is on the devices: where these share cores, the collectives of two queued
                # programs can block each other.
                batch = jax.block_until_ready(self.objective.place(batch))
                state, values = self.step(state, self.frozen_params, batch)
                # Read the previous update while this one runs, so that the devices never wait for the host.
                if pending:
                    report(*pending)
                metrics.count(units / self.data.share, flops / self.data.share, wait)
                last = must_stop(n) or self.monitor.check_time(n) or n == settings.steps
                if due := self.held_out.due(n):
                    values = values | self.monitor.held_out_loss(state, self.held_out)
                pending = n, values, last or due or n % settings.log_every == 0
                if last or n % settings.save_every == 0:
                    self.workdir_lock.check()
                    # A checkpoint never lacks the lines of its updates.
                    report(*pending)
                    pending = None
                    metrics.sync()
                    checkpoints.save(state, self.settings, self.data.hash)
                    self.monitor.saved()
                self.monitor.after_step(n, state, last=last)
                if last:
                    break
            if pending:
                report(*pending)
        finally:
            batches.close()
            metrics.close()
            self.monitor.close()
        return state


def timed_next(batches: Iterator) -> tuple[object, float]:
    """The next batch, and the seconds spent waiting for it."""
    began = time.perf_counter()
    batch = next(batches)
    return batch, time.perf_counter() - began
