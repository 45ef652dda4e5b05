"""The starts of a run: when each began and ended, and from them what share of the time was of use."""

import json
import math
import pathlib
import time

import numpy as np

from sora_jax.core.storage import atomic_write

FILE = "starts.json"


class Starts:
    """`starts.json` in a workdir: for each start of the run when it began, and from which step, and when it ended.

    A start without an end died. The time until the next one then counts as the run's, as it was down; the time
    after an end in order does not: nobody wanted it to run.
    """

    def __init__(self, workdir: pathlib.Path, step: int, began: float):
        """Add a start. Raises: InputError if the file can't be written."""
        self.path = workdir / FILE
        self.starts = json.loads(self.path.read_text()) if self.path.exists() else []
        self.starts.append({"step": step, "began": began})
        self._write()

    def end(self, step: int):
        """The last start has ended in order, after that step."""
        self.starts[-1] |= {"ended": time.time(), "last": step}
        self._write()

    @property
    def seconds(self) -> float:
        """For which the run has been on, or down."""
        ends = [later["began"] for later in self.starts[1:]] + [time.time()]
        return sum(start.get("ended", end) - start["began"] for start, end in zip(self.starts, ends, strict=True))

    def _write(self):
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.starts, indent=1))


def summary(metrics: list[dict], steps: int, seconds: float, starts: int, unit: str) -> dict[str, float]:
    """What a run came to.

    Args:
      metrics: the lines of its metrics.jsonl, in which every step counts once, however often it was done.
      seconds: that it took over all of its starts.
    Returns: steps, the units of work, hours, goodput and restarts; mfu, if it is known. Goodput is the time of all
      updates, each at the median of their times, as a share of the whole: what compiling, saving, sampling, being
      down and doing updates again has left.
    """

    def middle(name):
        return float(np.median([line[name] for line in metrics if name in line] or [math.nan]))

    work = [line[f"{unit}_per_s"] * line["step_seconds"] for line in metrics]
    values = {
        "steps": steps,
        unit: steps * float(np.mean(work or [math.nan])),
        "hours": seconds / 3600,
        "goodput": float(np.minimum(1.0, steps * middle("step_seconds") / seconds)),
        "restarts": starts - 1,
    }
    return values if math.isnan(mfu := middle("mfu")) else values | {"mfu": mfu}
