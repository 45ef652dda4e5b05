"""Solvers of the flow's differential equation dx/dt = velocity(x, t), from noise (t = 1) to data (t = 0).

`ancestral` solves the stochastic equation that has the same distribution at each time.

Times come from `time_grid`. A solver is a pure function of one step, for a loop on the host that shows progress,
and a scan over all steps.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.flow import shift_times

BELOW_ONE = np.float32(1 - 1e-6)  # the largest time whose log SNR the multistep solvers form, as in diffusers


def time_grid(steps: int, shift: float = 1.0, start: float = 1.0, end: float = 0.0):
    """Times from `start` down to `end`, evenly spaced and then shifted, the last one 0; [steps + 1] float32.

    Times that float32 can't tell apart after the shift become one: a step between them would divide by 0.
    """
    times = shift_times(jnp.linspace(start, end, steps + 1), shift).at[-1].set(0.0)
    limited = np.minimum(np.asarray(times), BELOW_ONE)
    distinct = np.append(True, np.diff(np.minimum.accumulate(limited)) < 0)
    return times if distinct.all() else times[distinct]


@dataclasses.dataclass(frozen=True)
class Solver:
    """A method to integrate from each time of a grid to the next.

    start: (x at times[0], noise) -> state, a tuple, of which the first is x. noise: ClipNoise, for a solver that
      adds some; None for others.
    step: (velocity_fn, state, times, i) -> state at times[i + 1]. velocity_fn(x, t) -> dx/dt, t = times[i];
      times [steps + 1], or of each patch [steps + 1, B, N, 1], and the scalar i may be traced. Solvers of
      SINGLE_STEP also take one i for each patch, [1, N, 1], with times [steps + 1]; t then has this shape.
    """

    start: Callable
    step: Callable

    def __call__(self, velocity_fn, x, times, noise=None):
        """x at times[-1] from x at times[0], by all steps."""

        def body(state, i):
            return self.step(velocity_fn, state, times, i), None

        return jax.lax.scan(body, self.start(x, noise), jnp.arange(len(times) - 1))[0][0]


def _euler_step(velocity_fn, state, times, i):
    (x,) = state
    t, t_next = times[i], times[i + 1]
    return (x + (t_next - t) * velocity_fn(x, t),)


def _heun_step(velocity_fn, state, times, i):
    (x,) = state
    t, t_next = times[i], times[i + 1]
    first = velocity_fn(x, t)
    second = velocity_fn(x + (t_next - t) * first, t_next)
    return (x + (t_next - t) * (first + second) / 2,)


def _ancestral_step(velocity_fn, state, times, i):
    x, noise = state
    t, t_next = times[i], times[i + 1]
    velocity = velocity_fn(x, t)
    data, old = x - t * velocity, x + (1 - t) * velocity
    kept = (1 - t) * t_next / ((1 - t_next) * t)
    new = jax.reshard(noise.draw(x.shape, jnp.sum(i)), jax.typeof(x).sharding)
    return (1 - t_next) * data + t_next * (kept * old + jnp.sqrt(1 - kept * kept) * new), noise


def _multistep(velocity_fn, state, times, i, *, correct):
    x, corrected, data, older = state
    # At t = 1 the log SNR is infinite. As diffusers, start just below; the second step depends on how far.
    times = jnp.minimum(times, BELOW_ONE)
    t_earlier, t_before, t, t_next = (times[jnp.maximum(i + k, 0)] for k in (-2, -1, 0, 1))
    second, second_before = ((j > 0) & (j < len(times) - 2) for j in (i, i - 1))  # whether of order 2 or 1
    found = x - t * velocity_fn(x, t)
    if correct:
        slope = _slope(older, data, t_earlier, t_before, t, second_before)
        better = _corrected(corrected, data, slope, found, t_earlier, t_before, t, second_before)
        x = jnp.where(i > 0, better, x)
    slope = _slope(data, found, t_before, t, t_next, second)
    return _advance(x, found, t, t_next, 0.5 * slope), x, found, data


def _start(x, noise):
    del noise
    return (x,)


def _start_multistep(x, noise):
    del noise
    return x, x, jnp.zeros_like(x), jnp.zeros_like(x)


# The tangent; order 1.
euler = Solver(_start, _euler_step)
# The mean of the velocities at both ends of a step; order 2.
# Karras et al. 2022 (arXiv 2206.00364), algorithm 1, without noise.
heun = Solver(_start, _heun_step)
# Predicts data and noise, and replaces a part of the noise in each step, which forgets errors of early steps.
# Order 1. Ho et al. 2020 (arXiv 2006.11239), eq. 6 and 7, with a flow's alpha = 1 - t and sigma = t.
ancestral = Solver(lambda x, noise: (x, noise), _ancestral_step)
# They keep no history, so that patches may be at different steps.
SINGLE_STEP = (euler, heun, ancestral)
# DPM-Solver++ 2M: one velocity a step, order 2, the first and the last step are of order 1.
# Lu et al. 2022 (arXiv 2211.01095), algorithm 2, with a flow's alpha = 1 - t and sigma = t.
dpm = Solver(_start_multistep, functools.partial(_multistep, correct=False))
# UniPC of order 2 with B(h) = exp(-h) - 1: `dpm` with each state corrected by the velocity there.
# Zhao et al. 2023 (arXiv 2302.04867), algorithms 5 to 8, "bh2".
unipc = Solver(_start_multistep, functools.partial(_multistep, correct=True))


def _log_snr(t):
    return jnp.log1p(-t) - jnp.log(t)  # -inf for noise, inf for data


def _advance(x, data, t, t_next, correction):
    """x at t_next from x at t, exact if the predicted data are constant over the step: data + correction."""
    decay = jnp.expm1(_log_snr(t) - _log_snr(t_next))  # -1 where t_next = 0: the result is the data
    return t_next / t * x - (1 - t_next) * decay * (data + correction)


def _slope(older, data, t_before, t, t_next, second):
    """Change of the predicted data over the next step, extrapolated from the last step; 0 at order 1."""
    behind, ahead = _log_snr(t) - _log_snr(t_before), _log_snr(t_next) - _log_snr(t)
    return jnp.where(second, (data - older) * (ahead / jnp.where(second, behind, 1.0)), 0.0)


def _corrected(x, data, slope, found, t_earlier, t_before, t, second):
    """The step from t_before to t again, with the data predicted at t."""
    h = _log_snr(t) - _log_snr(t_before)
    r = jnp.where(second, (_log_snr(t_earlier) - _log_snr(t_before)) / h, -1.0)
    decay = jnp.expm1(-h)
    b1 = (decay / -h - 1) / decay
    b2 = 2 * ((decay / -h - 1) / -h - 0.5) / decay
    back = jnp.where(second, (b2 - b1) / (r - 1), 0.0)  # the weights solve [[1, 1], [r, 1]] w = [b1, b2]
    here = jnp.where(second, b1 - back, 0.5)
    return _advance(x, data, t_before, t, back * slope + here * (found - data))
