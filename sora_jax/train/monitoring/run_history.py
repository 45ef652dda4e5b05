"""The history of a run: when each start began and ended, and the goodput that follows."""

import json
import math
import pathlib
import time

import numpy as np

from sora_jax.core.storage import atomic_write

FILE = "run_history.json"


class RunHistory:
    """`run_history.json` in a workdir: for each start when it began, from which step, and when it ended.

    A start without an end died: the time until the next start counts as downtime. The time after an orderly end
    does not count, because nobody wanted the run to be on.
    """

    def __init__(self, workdir: pathlib.Path, step: int, began: float):
        """Add a start. Raises: InputError if the file can't be written."""
        self.path = workdir / FILE
        self.starts = json.loads(self.path.read_text()) if self.path.exists() else []
        self.starts.append({"step": step, "began": began})
        self._write()

    def end(self, step: int):
        """Record the orderly end of this start, after `step` updates."""
        self.starts[-1] |= {"ended": time.time(), "last": step}
        self._write()

    @property
    def seconds(self) -> float:
        """Duration of the run: all its starts, and the downtime after those that died."""
        ends = [later["began"] for later in self.starts[1:]] + [time.time()]
        return sum(start.get("ended", end) - start["began"] for start, end in zip(self.starts, ends, strict=True))

    def _write(self):
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.starts, indent=1))


def run_totals(metrics: list[dict], steps: int, seconds: float, starts: int, unit: str) -> dict[str, float]:
    """Totals of a run.

    Args:
      metrics: the lines of its metrics.jsonl.
      seconds: its duration over all starts.
    Returns: steps, the units of work, hours, goodput, restarts, and mfu if it is known. Goodput is the time of all
      updates, each at their median time, as a fraction of the duration; the rest went into compiling, saving,
      sampling, downtime and updates done twice.
    """

    def median(name):
        return float(np.median([line[name] for line in metrics if name in line] or [math.nan]))

    work = [line[f"{unit}_per_s"] * line["step_seconds"] for line in metrics]
    totals = {
        "steps": steps,
        unit: steps * float(np.mean(work or [math.nan])),
        "hours": seconds / 3600,
        "goodput": float(np.minimum(1.0, steps * median("step_seconds") / seconds)),
        "restarts": starts - 1,
    }
    return totals if math.isnan(mfu := median("mfu")) else totals | {"mfu": mfu}
