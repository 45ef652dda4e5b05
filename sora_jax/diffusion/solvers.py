"""Solvers of the flow's differential equation dx/dt = velocity(x, t), from noise (t = 1) to data (t = 0).

`ancestral` solves the stochastic one that has the same distribution at each time.

Time steps come from `time_grid`. A solver is a pure function of one step, so that a host can show each, and a scan
over all of them.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sora_jax.diffusion.flow import shift_times


def time_grid(steps: int, shift: float = 1.0, start: float = 1.0, end: float = 0.0):
    """Times from `start` down to `end`, evenly spaced and then shifted, the last one 0; [steps + 1] float32."""
    return shift_times(jnp.linspace(start, end, steps + 1), shift).at[-1].set(0.0)


@dataclasses.dataclass(frozen=True)
class Solver:
    """How to go from each time of a grid to the next.

    start: (x at times[0], keys) -> state, a tuple of arrays, of which the first is x itself. keys: the data of a
      random key for each row of x, [B, ...] uint32, for a solver that adds noise; others take None.
    step: (velocity_fn, state, times, i) -> state at times[i + 1]. velocity_fn(x, t) -> dx/dt, t a scalar;
      times [steps + 1], i a scalar, both may be traced. Solvers of SINGLE_STEP also take an i of each patch,
      [1, N, 1]; then t is of this shape.
    """

    start: Callable
    step: Callable

    def __call__(self, velocity_fn, x, times, keys=None):
        """All steps: from x at times[0] to x at times[-1]."""

        def body(state, i):
            return self.step(velocity_fn, state, times, i), None

        return jax.lax.scan(body, self.start(x, keys), jnp.arange(len(times) - 1))[0][0]


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
    x, keys = state
    t, t_next = times[i], times[i + 1]
    velocity = velocity_fn(x, t)
    data, noise = x - t * velocity, x + (1 - t) * velocity
    kept = (1 - t) * t_next / ((1 - t_next) * t)
    new = jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(jax.random.wrap_key_data(key), jnp.sum(i)), x.shape[1:])
    )
    new = jax.reshard(new(keys), jax.typeof(x).sharding)
    return (1 - t_next) * data + t_next * (kept * noise + jnp.sqrt(1 - kept * kept) * new), keys


def _multistep(velocity_fn, state, times, i, *, correct):
    x, corrected, data, older = state
    # At t = 1 the log of the SNR is infinite; diffusers begins just below it, and the second step feels how far.
    times = jnp.minimum(times, 1 - 1e-6)
    t_earlier, t_before, t, t_next = (times[jnp.maximum(i + k, 0)] for k in (-2, -1, 0, 1))
    second, second_before = ((j > 0) & (j < len(times) - 2) for j in (i, i - 1))  # of order 2, not 1
    found = x - t * velocity_fn(x, t)
    if correct:
        slope = _slope(older, data, t_earlier, t_before, t, second_before)
        better = _corrected(corrected, data, slope, found, t_earlier, t_before, t, second_before)
        x = jnp.where(i > 0, better, x)
    slope = _slope(data, found, t_before, t, t_next, second)
    return _advance(x, found, t, t_next, 0.5 * slope), x, found, data


def _start(x, keys):
    del keys
    return (x,)


def _start_multistep(x, keys):
    del keys
    return x, x, jnp.zeros_like(x), jnp.zeros_like(x)


# Along the tangent; order 1.
euler = Solver(_start, _euler_step)
# With the mean of the velocities at both ends of a step; order 2.
# Karras et al. 2022 (arXiv 2206.00364), algorithm 1, without noise.
heun = Solver(_start, _heun_step)
# Back by what is the data and what is noise, with some of the noise new in each step: what an early step got wrong
# is forgotten with its noise. Order 1.
# Ho et al. 2020 (arXiv 2006.11239), eq. 6 and 7, with a flow's alpha = 1 - t and sigma = t.
ancestral = Solver(lambda x, keys: (x, keys), _ancestral_step)
# They remember nothing of the step before, so that patches may be at different ones.
SINGLE_STEP = (euler, heun, ancestral)
# DPM-Solver++ 2M: one velocity a step, order 2, the first and the last step of order 1.
# Lu et al. 2022 (arXiv 2211.01095), algorithm 2, with a flow's alpha = 1 - t and sigma = t.
dpm = Solver(_start_multistep, functools.partial(_multistep, correct=False))
# UniPC of order 2 with B(h) = exp(-h) - 1: `dpm`, and each state corrected by the velocity found there.
# Zhao et al. 2023 (arXiv 2302.04867), algorithms 5 to 8, "bh2".
unipc = Solver(_start_multistep, functools.partial(_multistep, correct=True))


def _log_snr(t):
    return jnp.log1p(-t) - jnp.log(t)  # -inf for noise, inf for data


def _advance(x, data, t, t_next, correction):
    """From t to t_next, exactly if the predicted data stay what they are at t: data + correction."""
    decay = jnp.expm1(_log_snr(t) - _log_snr(t_next))  # -1 where t_next = 0: what is left is the data
    return t_next / t * x - (1 - t_next) * decay * (data + correction)


def _slope(older, data, t_before, t, t_next, second):
    """How the predicted data changes over the step ahead, by the step behind; 0 at order 1."""
    behind, ahead = _log_snr(t) - _log_snr(t_before), _log_snr(t_next) - _log_snr(t)
    return jnp.where(second, (data - older) * (ahead / jnp.where(second, behind, 1.0)), 0.0)


def _corrected(x, data, slope, found, t_earlier, t_before, t, second):
    """The step from t_before to t once more, now that the data predicted at t are known."""
    h = _log_snr(t) - _log_snr(t_before)
    r = jnp.where(second, (_log_snr(t_earlier) - _log_snr(t_before)) / h, -1.0)
    decay = jnp.expm1(-h)
    b1 = (decay / -h - 1) / decay
    b2 = 2 * ((decay / -h - 1) / -h - 0.5) / decay
    back = jnp.where(second, (b2 - b1) / (r - 1), 0.0)  # the weights solve [[1, 1], [r, 1]] w = [b1, b2]
    here = jnp.where(second, b1 - back, 0.5)
    return _advance(x, data, t_before, t, back * slope + here * (found - data))
