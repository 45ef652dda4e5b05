"""Classifier-free guidance, as a wrapper of a velocity function."""

import jax
import jax.numpy as jnp

from sora_jax.mesh import spec


def in_pairs(x):
    """Each row twice, one after the other, on the same chips: [B, ...] -> [2 B, ...]."""
    return jnp.repeat(x, 2, axis=0, out_sharding=jax.typeof(x).sharding.spec)


def guided(velocity_fn, scale):
    """A velocity function that is pushed away from the unconditional velocity.

    Args:
      velocity_fn: (x, t) -> velocity for rows in pairs (conditional, unconditional), [2 B, N, P]: one pass makes
        both.
      scale: scalar, 1 = the conditional velocity itself.
    Returns: (x, t) -> velocity, [B, N, P].
    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6, with scale = 1 + w.
    """

    def velocity(x, t):
        both = velocity_fn(in_pairs(x), t)
        both = jnp.reshape(both, (x.shape[0], 2, *x.shape[1:]), out_sharding=spec("batch . tokens ."))
        conditional, unconditional = both[:, 0], both[:, 1]
        return unconditional + scale * (conditional - unconditional)

    return velocity
