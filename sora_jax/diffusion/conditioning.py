"""Known patches: given, clean, at noise level 0, and never moved by a solver."""

import jax.numpy as jnp


def hold_known(velocity_fn, known):
    """A velocity function that leaves known patches where they are.

    Args:
      velocity_fn: (x, t) -> velocity, [B, N, P].
      known: [B, N] bool.
    """

    def velocity(x, t):
        return jnp.where(known[..., None], 0.0, velocity_fn(x, t))

    return velocity


def start_from(noise, batch):
    """What a solver starts from: the batch's patches where they are known, noise elsewhere, [B, N, P]."""
    return jnp.where(batch.known[..., None], batch.patches, noise)
