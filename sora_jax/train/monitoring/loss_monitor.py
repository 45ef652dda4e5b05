"""What is seen of the numbers of each update: those that were skipped, and a loss that runs away."""

import json
import math
import pathlib
from collections.abc import Callable, Sequence

import rich.console

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write

BAD = "bad_batches.json"  # in a workdir: step -> sources of the clips
SHOWN = 5  # sources that are named in the line that ends a run
NEAR, FAR = 20, 200  # updates that the two running means of the loss look back on
AWAY = 6  # standard errors of the near mean that it may be above the far one


class Guard:
    """Reads the numbers of each update once it is done; every process must show it all of them, in order.

    Args:
      limit: updates skipped in a row that end the run.
      sources_at: the sources of the clips in the whole batch of a step.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        limit: int,
        sources_at: Callable[[int], Sequence[str]],
        console: rich.console.Console,
    ):
        self.workdir, self.limit, self.sources_at, self.console = workdir, limit, sources_at, console
        self.skipped = 0  # since it was last asked for
        self._row: list[int] = []
        self._seen, self._near, self._far, self._noise, self._away = 0, 0.0, 0.0, 0.0, False

    def see(self, step: int, metrics: dict):
        """Take in the numbers of update number `step`, counted from 1; waits until it is done.

        Raises: InputError, that names clips, if too many were skipped in a row.
        """
        if float(metrics["skipped"]):
            self.skipped += 1
            self._row.append(step)
            if len(self._row) == self.limit:
                self._give_up()
            return
        self._row = []
        self._follow(step, float(metrics["loss"]))

    def take_skipped(self) -> int:
        """How many have been skipped since the last call."""
        skipped, self.skipped = self.skipped, 0
        return skipped

    def _give_up(self):
        sources = {step: list(self.sources_at(step - 1)) for step in self._row}

        def write():
            with atomic_write(self.workdir / BAD) as temporary:
                temporary.write_text(json.dumps(sources, indent=1))

        run_on_first_host(write)
        names = list(dict.fromkeys(name for batch in sources.values() for name in batch))
        more = f" and {len(names) - SHOWN} more in {self.workdir / BAD}" if len(names) > SHOWN else ""
        raise InputError(
            f"the loss or its gradient was not finite in {self.limit} updates in a row, {self._row[0]} to "
            f"{self._row[-1]}, on clips of {', '.join(names[:SHOWN])}{more}; look at them, or lower "
            f"config.optimizer.learning_rate"
        )

    def _follow(self, step, loss):
        """Tell once that the mean of late updates is far above that of those before, and once that it is back."""
        self._seen += 1
        near, far = (1 / min(self._seen, span) for span in (NEAR, FAR))
        if self._seen > 1:  # around the near mean: a loss that falls has a trend, which is no noise
            self._noise += far * ((loss - self._near) ** 2 - self._noise)
        self._near += near * (loss - self._near)
        self._far += far * (loss - self._far)
        if self._seen < 5 * NEAR:
            return
        error = math.sqrt(self._noise / NEAR)
        away = self._near > self._far + AWAY * error
        if away != self._away:
            was = f"from {self._far:.4f}, the mean of about {min(self._seen, FAR)}"
            told = f"the loss has gone up to {self._near:.4f}, the mean of the last {NEAR} updates, {was}"
            back = f"the loss is back at {self._near:.4f}"
            self.console.print(f"note: step {step}: {told if away else back}", highlight=False, soft_wrap=True)
        self._away = away
