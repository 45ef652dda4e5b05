"""Solvers of the flow's differential equation dx/dt = velocity(x, t), from noise (t = 1) to data (t = 0).

A solver is a scan around velocity_fn(x, t). Time steps come from `time_grid`.
"""

import jax
import jax.numpy as jnp

from sora_jax.diffusion.flow import shift_times


def time_grid(steps: int, shift: float = 1.0, start: float = 1.0, end: float = 0.0):
    """Times from `start` down to `end`, evenly spaced and then shifted, the last one 0; [steps + 1] float32."""
    return shift_times(jnp.linspace(start, end, steps + 1), shift).at[-1].set(0.0)


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


def dpm(velocity_fn, x, times):
    """DPM-Solver++ 2M: one velocity a step, order 2; the first step and the last have order 1.

    Arguments as for `euler`.
    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2, with a flow's alpha = 1 - t and sigma = t.
    """
    return _multistep(velocity_fn, x, times, correct=False)


def unipc(velocity_fn, x, times):
    """UniPC of order 2 with B(h) = exp(-h) - 1: `dpm`, and each state corrected by the velocity found there.

    Arguments as for `euler`.
    Source: Zhao et al. 2023 (arXiv 2302.04867), algorithms 5 to 8, "bh2".
    """
    return _multistep(velocity_fn, x, times, correct=True)


def _multistep(velocity_fn, x, times, *, correct):
    # At t = 1 the log of the SNR is infinite; diffusers begins just below it, and the second step feels how far.
    times = jnp.minimum(times, 1 - 1e-6)
    steps = len(times) - 1
    index = jnp.arange(steps)
    second_order = (index > 0) & (index < steps - 1)
    before = jnp.concatenate([times[:1], times[:-2]])  # the time one step back, two steps back
    earlier = jnp.concatenate([before[:1], before[:-1]])

    def step(carry, now):
        x, corrected, data, older = carry
        t, t_next, t_before, t_earlier, first, second, second_before = now
        found = x - t * velocity_fn(x, t)
        if correct:
            slope = _slope(older, data, t_earlier, t_before, t, second_before)
            better = _corrected(corrected, data, slope, found, t_earlier, t_before, t, second_before)
            x = jnp.where(first, x, better)
        slope = _slope(data, found, t_before, t, t_next, second)
        x_next = _advance(x, found, t, t_next, 0.5 * slope)
        return (x_next, x, found, data), None

    flags = (index == 0, second_order, jnp.concatenate([second_order[:1], second_order[:-1]]))
    carry = (x, x, jnp.zeros_like(x), jnp.zeros_like(x))
    return jax.lax.scan(step, carry, (times[:-1], times[1:], before, earlier, *flags))[0][0]


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
