"""The history of a run: when each start began and ended, and the goodput that follows."""

import json
import math
import pathlib
from collections.abc import Callable

import numpy as np

from sora_jax.core.storage import atomic_write

FILE = "run_history.json"


class RunHistory:
    """`run_history.json` in a workdir: for each start when it began, from which step, and when it ended.

    A start without an end died: the time until the next start counts as downtime. The time after an orderly end
    does not count, because nobody wanted the run to be on. `saved` is the time of a start until its
    last checkpoint.
    """

    def __init__(self, workdir: pathlib.Path, step: int, began: float, elapsed: Callable[[], float]):
        """Add a start.

        Args:
          began: time of day of the start, in seconds since 1970.
          elapsed: seconds since then, by a clock that nobody sets.
        Raises: InputError if the file can't be written.
        """
        self.path, self._elapsed = workdir / FILE, elapsed
        self.starts = json.loads(self.path.read_text()) if self.path.exists() else []
        self.starts.append({"step": step, "began": began})
        self._write()

    def end(self, step: int):
        """Record the orderly end of this start, after `step` updates."""
        self.starts[-1] |= {"ended": self.starts[-1]["began"] + self._elapsed(), "last": step}
        self._write()

    def save(self):
        """Record that a checkpoint was written: the time until here is not lost if this start dies."""
        self.starts[-1]["saved"] = self._elapsed()
        self._write()

    @property
    def busy_seconds(self) -> float:
        """Time that the run was on, without downtime and without what starts that died did in vain."""
        *earlier, _ = self.starts
        ended = [
            start["ended"] - start["began"] if "ended" in start else start.get("saved", 0) for start in earlier
        ]
        return sum(max(0.0, seconds) for seconds in ended) + self._elapsed()

    @property
    def seconds(self) -> float:
        """Duration of the run: all its starts, and the downtime after those that died.

        A clock that was set back between two starts makes a duration 0, never negative.
        """
        *earlier, now = self.starts
        ends = [start.get("ended", later["began"]) for start, later in zip(earlier, self.starts[1:], strict=True)]
        durations = [end - start["began"] for end, start in zip(ends, earlier, strict=True)]
        last = now["ended"] - now["began"] if "ended" in now else self._elapsed()
        return sum(max(0.0, duration) for duration in [*durations, last])

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
        "goodput": float(np.minimum(1.0, steps * median("step_seconds") / max(seconds, 1e-9))),
        "restarts": starts - 1,
    }
    return totals if math.isnan(mfu := median("mfu")) else totals | {"mfu": mfu}
