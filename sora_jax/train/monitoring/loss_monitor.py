"""Watching the loss: updates that were skipped, and a loss that diverges."""

import json
import math
import pathlib
from collections.abc import Callable, Sequence

import rich.console

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write

BAD_BATCHES = "bad_batches.json"  # in a workdir: step -> sources of its clips
SHOWN = 5  # sources named in the error
SHORT, LONG = 20, 200  # updates covered by the two running means of the loss
DIVERGED = 6  # standard errors by which the short mean may exceed the long one


class LossMonitor:
    """Reads the metrics of every update, in order, on every process.

    Args:
      limit: number of updates skipped in a row that ends the run.
      sources_at: step -> sources of the clips in its global batch.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        limit: int,
        sources_at: Callable[[int], Sequence[str]],
        console: rich.console.Console,
    ):
        self.workdir, self.limit, self.sources_at, self.console = workdir, limit, sources_at, console
        self.skipped = 0  # since the last `take_skipped`
        self._in_row: list[int] = []
        self._seen, self._short, self._long, self._variance, self._diverged = 0, 0.0, 0.0, 0.0, False

    def update(self, step: int, metrics: dict):
        """Read the metrics of update number `step`, counted from 1; waits until it is done.

        Raises: InputError that names clips, if too many updates were skipped in a row.
        """
        if float(metrics["skipped"]):
            self.skipped += 1
            self._in_row.append(step)
            if len(self._in_row) == self.limit:
                self._give_up()
            return
        self._in_row = []
        self._compare_means(step, float(metrics["loss"]))

    def take_skipped(self) -> int:
        """Number of updates skipped since the last call."""
        skipped, self.skipped = self.skipped, 0
        return skipped

    def _give_up(self):
        sources = {step: list(self.sources_at(step - 1)) for step in self._in_row}

        def write():
            with atomic_write(self.workdir / BAD_BATCHES) as temporary:
                temporary.write_text(json.dumps(sources, indent=1))

        run_on_first_host(write)
        names = list(dict.fromkeys(name for batch in sources.values() for name in batch))
        more = f" and {len(names) - SHOWN} more in {self.workdir / BAD_BATCHES}" if len(names) > SHOWN else ""
        raise InputError(
            f"the loss or its gradient was not finite in {self.limit} updates in a row, {self._in_row[0]} to "
            f"{self._in_row[-1]}, on clips of {', '.join(names[:SHOWN])}{more}; look at them, or lower "
            f"config.optimizer.learning_rate"
        )

    def _compare_means(self, step, loss):
        """Print a note when the short mean rises far above the long one, and another when it is back."""
        self._seen += 1
        fast, slow = (1 / min(self._seen, span) for span in (SHORT, LONG))
        if self._seen > 1:  # around the short mean: the trend of a falling loss is no noise
            self._variance += slow * ((loss - self._short) ** 2 - self._variance)
        self._short += fast * (loss - self._short)
        self._long += slow * (loss - self._long)
        if self._seen < 5 * SHORT:
            return
        error = math.sqrt(self._variance / SHORT)
        diverged = self._short > self._long + DIVERGED * error
        if diverged != self._diverged:
            before = f"from {self._long:.4f}, the mean of about {min(self._seen, LONG)}"
            up = f"the loss has gone up to {self._short:.4f}, the mean of the last {SHORT} updates, {before}"
            back = f"the loss is back at {self._short:.4f}"
            note = f"note: step {step}: {up if diverged else back}"
            self.console.print(note, markup=False, highlight=False, soft_wrap=True)
        self._diverged = diverged
