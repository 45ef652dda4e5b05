"""The step cache: skip the model where its velocity hardly changes, and reuse the clean data it predicted last.

The change of the velocity over the noise times is measured in one run without the cache, and kept in a small file.
Source: Ma et al. 2025 (arXiv 2506.09045), MagCache. MagCache measures the magnitude of the transformer's residual;
here it is the relative change of the velocity after guidance.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write, read_object

FILE = "velocity_change.json"  # in a workdir
ALWAYS_RUN = 0.2  # share of the steps, at the beginning, that decide what is seen (arXiv 2506.09045)


@dataclasses.dataclass(frozen=True)
class VelocityChange:
    """The accumulated relative change of a model's velocity over the noise times.

    times: falling; change: at these times, rising from 0; step: updates of the parameters when it was measured.
    """

    times: tuple[float, ...]
    change: tuple[float, ...]
    step: int

    def at(self, times: np.ndarray) -> np.ndarray:
        """The change at other times, interpolated."""
        return np.interp(-np.asarray(times), -np.asarray(self.times), self.change)


class VelocityMeter:
    """Measures a velocity change: call it after each step of a run that does not use the cache."""

    def __init__(self):
        self.times, self.change, self._last = [], [0.0], None

    def __call__(self, t: float, velocity: jax.Array):
        if self._last is not None:
            self.change.append(self.change[-1] + float(_relative_change(velocity, self._last)))
        self.times.append(float(t))
        self._last = velocity

    def result(self, step: int) -> VelocityChange:
        return VelocityChange(tuple(self.times), tuple(self.change), step)


@jax.jit
def _relative_change(velocity, before):
    return jnp.sqrt(jnp.sum(jnp.square(velocity - before)) / jnp.sum(jnp.square(before)))


def write_velocity_change(path: pathlib.Path, change: VelocityChange):
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(change), indent=1) + "\n")


def read_velocity_change(path: pathlib.Path) -> VelocityChange:
    """The content of a file of `write_velocity_change`. Raises: InputError if it is absent or malformed."""
    found = read_object(path)
    try:
        times, change = (tuple(map(float, found[name])) for name in ("times", "change"))
        result = VelocityChange(times, change, int(found["step"]))
    except (KeyError, TypeError, ValueError):
        times = change = ()
    falling, rising = np.diff(np.array(times)) < 0, np.diff(np.array(change)) >= 0
    if not times or len(times) != len(change) or not falling.all() or not rising.all():
        raise InputError(f"{path}: not a measured velocity change; remove it, and it is measured again")
    return result
