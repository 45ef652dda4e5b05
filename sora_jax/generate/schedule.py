"""What each step of a run does, known before the first: which expert, how much guidance, or nothing at all.

A step is skipped where the velocity has hardly moved since the model last ran: it goes on towards the data that
were found then.
How far it moves, from noise to video, is measured in one run that skips nothing, and kept in a small file.
Source: Ma et al. 2025 (arXiv 2506.09045), MagCache. That measures the residual of the transformer's blocks, by the
ratio of its magnitudes; here it is the velocity that a solver takes, guidance and all, by its whole change.
"""

import dataclasses
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.config.schema import SampleSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write, read_object

FILE = "drift.json"  # in a workdir
FIRST = 0.2  # of the steps, which are never skipped, as in arXiv 2506.09045: they decide what is to be seen


@dataclasses.dataclass(frozen=True)
class Drift:
    """How far the velocity has moved by each time of a run, as a share of its own size.

    times: falling; moved: rising from 0; step: updates that the parameters had had.
    """

    times: tuple[float, ...]
    moved: tuple[float, ...]
    step: int

    def at(self, times: np.ndarray) -> np.ndarray:
        """How far it has moved by these times, which may be of a run with other steps."""
        return np.interp(-np.asarray(times), -np.asarray(self.times), self.moved)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step: by the expert of low noise or not, with this guidance; or skipped, towards the data before."""

    low: bool
    guidance: float
    skipped: bool


def schedule(
    settings: Settings,
    sample: SampleSettings,
    times: np.ndarray,
    drift: Drift | None,
    *,
    low_guidance: float = 0.0,
) -> list[Step]:
    """The steps of a run from times[0] to times[-1].

    Args:
      drift: None: it is not measured, so that no step may be skipped.
      low_guidance: of the expert of low noise, which takes the times below flow.time_min.
    Raises: InputError if steps are to be skipped without a drift.
    """
    if sample.skip and drift is None:
        raise InputError(
            f"config.sample.skip={sample.skip:g}: how far this model's velocity moves has not been measured; "
            f"`sora-jax sample` does so the first time"
        )
    steps, count, ran = [], len(times) - 1, 0.0
    moved = drift.at(times) if sample.skip else np.zeros(len(times))
    for i, t in enumerate(times[:-1]):
        low = bool(t < settings.flow.time_min)
        guidance = low_guidance if low else sample.guidance
        guidance = guidance if sample.guidance_min <= t <= sample.guidance_max else 1.0
        same = bool(steps) and (steps[-1].low, steps[-1].guidance) == (low, guidance)
        skipped = bool(sample.skip) and same and i >= math.ceil(FIRST * count) and moved[i] - ran <= sample.skip
        ran = ran if skipped else moved[i]
        steps.append(Step(low, guidance, skipped))
    return steps


class Meter:
    """Measures a drift: called with the time and the velocity [B, N, P] of each step of a run that skips none."""

    def __init__(self):
        self.times, self.moved, self._last = [], [0.0], None

    def __call__(self, t: float, velocity: jax.Array):
        if self._last is not None:
            self.moved.append(self.moved[-1] + float(_change(velocity, self._last)))
        self.times.append(float(t))
        self._last = velocity

    def drift(self, step: int) -> Drift:
        return Drift(tuple(self.times), tuple(self.moved), step)


@jax.jit
def _change(velocity, before):
    """The size of the difference, as a share of that of the velocity; what is known has none."""
    return jnp.sqrt(jnp.sum(jnp.square(velocity - before)) / jnp.sum(jnp.square(before)))


def write_drift(path: pathlib.Path, drift: Drift):
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(drift), indent=1) + "\n")


def read_drift(path: pathlib.Path) -> Drift:
    """What `write_drift` wrote. Raises: InputError if it is not there, or is none."""
    found = read_object(path)
    try:
        times, moved = (tuple(map(float, found[name])) for name in ("times", "moved"))
        drift = Drift(times, moved, int(found["step"]))
    except (KeyError, TypeError, ValueError):
        times = moved = ()
    if not times or len(times) != len(moved) or np.any(np.diff(times) >= 0) or np.any(np.diff(moved) < 0):
        raise InputError(f"{path}: is no measured drift; remove it, and it is measured again")
    return drift
