"""Solvers of the flow's differential equation dx/dt = velocity(x, t), from noise (t = 1) to data (t = 0).

A solver is a scan around velocity_fn(x, t). Time steps come from `time_grid`.
"""

import jax
import jax.numpy as jnp

from sora_jax.diffusion.flow import shift_times


def time_grid(steps: int, shift: float = 1.0, start: float = 1.0):
    """Times from `start` down to 0, evenly spaced and then shifted, [steps + 1] float32."""
    return shift_times(jnp.linspace(start, 0.0, steps + 1), shift)


def euler(velocity_fn, x, times):
    """Solve with steps along the tangent, order 1.

    Args:
      velocity_fn: (x, t) -> dx/dt, shaped like x; t is a scalar.
      x: state at times[0].
      times: [steps + 1], each step goes from one to the next.
    Returns: the state at times[-1].
    """

    def step(x, interval):
        t, t_next = interval
        return x + (t_next - t) * velocity_fn(x, t), None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


def heun(velocity_fn, x, times):
    """Solve with the mean of the velocities at both ends of a step, order 2; arguments as for `euler`.

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 1, without noise.
    """

    def step(x, interval):
        t, t_next = interval
        first = velocity_fn(x, t)
        second = velocity_fn(x + (t_next - t) * first, t_next)
        return x + (t_next - t) * (first + second) / 2, None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]
