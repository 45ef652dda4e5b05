"""The times of a solver's steps as the schedulers of Wan and diffusers have them.

Source: Wan 2025 (arXiv 2503.20314) and its code for FlowUniPC and DPM-Solver++; diffusers' schedulers.
"""

from sora_jax.diffusion.flow import shift_times
from sora_jax.diffusion.solvers import time_grid

THOUSANDTH = 1e-3  # the lowest time that Wan was trained at; its complement is the highest of the first grid
# The evenly spaced times before the shift: the first one, and the one after the last.
RANGES = {
    "linear": (1.0, 0.0),
    "wan_unipc": (1 - THOUSANDTH, 0.0),
    "wan_dpm": (1.0, 0.0),
    "diffusers_unipc": (1.0, THOUSANDTH),
    "diffusers_dpm": (1 - THOUSANDTH, 0.0),
}


def solver_times(name: str, steps: int, shift: float, strength: float = 1.0):
    """The times of a run, the last one 0; [steps + 1] float32, or fewer where times can't be told apart.

    Args:
      name: of config.sample.time_grid.
      steps: of the whole grid, at least 1.
      shift: of times towards noise, above 0.
      strength: share of the grid that is run, from its end; in (0, 1].
    """
    steps = max(1, round(steps * strength))
    if name == "diffusers_euler":
        # FlowMatchEulerDiscreteScheduler spaces the times down to its lowest one, which is shifted already, and
        # shifts them once more. All of them are steps: the one after the last is set to 0.
        start, last = strength, float(shift_times(THOUSANDTH, shift))
        end = last - (start - last) / max(steps - 1, 1)
        return time_grid(steps, shift, start, end)
    start, end = RANGES[name]
    return time_grid(steps, shift, min(start, strength), min(end, strength))
