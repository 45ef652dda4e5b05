"""Classifier-free guidance, as a wrapper of a velocity function."""

import jax
import jax.numpy as jnp

from sora_jax.mesh import spec


def twice(x):
    """Each row of the batch twice, one after the other: [B, ...] -> [2 B, ...], still split over the batch."""
    doubled = jnp.stack([x, x], axis=1)
    axes = spec("batch" + " ." * (x.ndim - 1))
    return jnp.reshape(jax.reshard(doubled, spec("batch" + " ." * x.ndim)), (-1, *x.shape[1:]), out_sharding=axes)


def guided(velocity_fn, scale: float):
    """A velocity function that is pushed away from the unconditional velocity.

    Args:
      velocity_fn: (x, t) -> velocity for rows in pairs (conditional, unconditional), [2 B, ...]: one pass makes
        both.
      scale: 1 = the conditional velocity itself.
    Returns: (x, t) -> velocity, [B, ...].
    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6, with scale = 1 + w.
    """

    def velocity(x, t):
        both = velocity_fn(twice(x), t)
        shape = (x.shape[0], 2, *x.shape[1:])
        both = jnp.reshape(both, shape, out_sharding=spec("batch" + " ." * x.ndim))
        conditional, unconditional = both[:, 0], both[:, 1]
        return unconditional + scale * (conditional - unconditional)

    return velocity
