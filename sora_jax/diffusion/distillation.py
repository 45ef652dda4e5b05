"""Distillation of a guided teacher into a student of few steps: times, noise and losses."""

import jax
import jax.numpy as jnp

from sora_jax.config.schema import DistillSettings
from sora_jax.core.mesh import spec
from sora_jax.diffusion.flow import MIN_TIME, shift_times


def step_times(key, shifts, settings: DistillSettings):
    """Times t at which the student predicts data, and s < t at which these are judged; both [B, T] float32.

    Before the shift, t is a time of the student's grid 1/k, 2/k ... 1, or for a share of `off_grid` any time, and
    s lies up to 1/k below. Source: Salimans et al. 2024 (arXiv 2406.04103), algorithm 2.

    Args:
      shifts: of each time of each sequence, [B, T] float32.
    """
    on_grid, anywhere, chosen, below = jax.random.uniform(key, (4, *shifts.shape), minval=1e-4)
    k = settings.steps
    u = jnp.where(chosen < settings.off_grid, anywhere, jnp.ceil(on_grid * k) / k)
    lower = jnp.maximum(u - below / k, 1e-4)
    return (shift_times(jax.reshard(x, spec("batch .")), shifts) for x in (u, lower))


def guidance_at(t, settings: DistillSettings):
    """The teacher's guidance scale at times t: `guidance` within its interval, else 1."""
    inside = (t >= settings.guidance_min) & (t <= settings.guidance_max)
    return jnp.where(inside, settings.guidance, 1.0)


def step_back(x, data, noise, t, s):
    """x at time s, from x at time t and the data predicted there, with the ancestral solver's share of new noise.

    Args:
      x, data, noise: [B, N, P]; noise is the new one.
      t, s: [B, N, 1], s <= t.
    Source: arXiv 2006.11239, eq. 6 and 7, with a flow's alpha = 1 - t and sigma = t.
    """
    t = jnp.maximum(t, 1e-6)
    predicted = (x - (1 - t) * data) / t
    kept = jnp.clip((1 - t) * s / (jnp.maximum(1 - s, 1e-6) * t), 0, 1)
    return (1 - s) * data + s * (kept * predicted + jnp.sqrt(1 - kept * kept) * noise)


def critic_error(critic, student, teacher, s):
    """The critic's squared error: it learns the data that the student made, and stays near the teacher.

    Args:
      critic, student, teacher: data, [B, N, P]; the last two get no gradient.
      s: time of the critic's input, [B, N, 1]; errors count as those of velocities.
    Returns: [B, N]. Source: arXiv 2406.04103, eq. 9.
    """
    errors = (jnp.square(critic - jax.lax.stop_gradient(target)) for target in (student, teacher))
    return jnp.mean(sum(errors) / jnp.square(jnp.maximum(s, MIN_TIME)), axis=-1)


def moment_loss(student, critic, teacher, s):
    """A loss whose gradient moves the student's data by the difference between critic and teacher.

    Args: as in `critic_error`; critic and teacher get no gradient.
    Returns: [B, N]. Source: arXiv 2406.04103, eq. 8, with the weight s.
    """
    return jnp.mean(s * student * jax.lax.stop_gradient(critic - teacher), axis=-1)
