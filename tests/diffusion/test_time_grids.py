"""The times of each scheduler against its formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.config.training import TIME_GRIDS
from sora_jax.diffusion.solvers import dpm, time_grid, unipc
from sora_jax.diffusion.time_grids import RANGES, solver_times


def shifted(sigma, shift):
    return shift * sigma / (1 + (shift - 1) * sigma)


def by_formula(name, n, shift):
    """Times as each scheduler's code forms them, in double precision."""
    if name == "wan_unipc":
        return shifted(np.linspace(0.999, 0, n + 1)[:-1], shift)
    if name in ("wan_dpm", "linear"):
        return shifted(np.linspace(1, 0, n + 1)[:-1], shift)
    if name == "diffusers_unipc":
        return shifted(np.linspace(1, 1 / 1000, n + 1)[:-1], shift)
    if name == "diffusers_dpm":
        return np.flip(shifted(1 - np.linspace(1, 1 / 1000, n + 1), shift))[:-1]
    lowest = shifted(np.arange(1000, 0, -1) / 1000, shift)[-1]
    return shifted(np.linspace(1000, 1000 * lowest, n) / 1000, shift)


@pytest.mark.parametrize("name", TIME_GRIDS)
@pytest.mark.parametrize("shift", [3, 5, 12])
@pytest.mark.parametrize("steps", [1, 20, 40, 50])
def test_times_follow_the_formula(name, shift, steps):
    times = np.asarray(solver_times(name, steps, shift))
    assert times.dtype == np.float32 and times[-1] == 0
    np.testing.assert_allclose(times[:-1], by_formula(name, steps, shift), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", list(RANGES))
def test_a_part_of_a_grid_begins_at_its_strength(name):
    times = np.asarray(solver_times(name, 40, 1.0, strength=0.5))
    assert len(times) == 21 and times[0] == pytest.approx(0.5) and np.all(np.diff(times) < 0)


@pytest.mark.parametrize("steps, shift", [(50, 12), (1000, 300), (1000, 1000), (50, 1e5), (50, 1e9)])
def test_solvers_are_finite_at_any_shift(steps, shift):
    times = time_grid(steps, shift, end=1e-3)
    for solver in (unipc, dpm):
        assert jnp.isfinite(solver(lambda x, t: x - 0.5, jnp.ones((2, 3)), times)).all()
