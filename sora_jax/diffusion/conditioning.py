"""What a solver is given: known patches, a video to begin with, time that closes to a ring."""

import jax
import jax.numpy as jnp

from sora_jax.core.mesh import spec


def freeze_conditioning(velocity_fn, conditioning_mask):
    """A velocity function that leaves known patches where they are.

    Args:
      velocity_fn: (x, t) -> velocity, [B, N, P].
      known: [B, N] bool.
    """

    def velocity(x, t):
        return jnp.where(conditioning_mask[..., None], 0.0, velocity_fn(x, t))

    return velocity


def start_from(noise, batch, *, time=1.0, conditioning_time: float = 0.0):
    """What a solver starts from, [B, N, P]: the batch's patches, known ones at conditioning_time, the others
    at `time`.

    time 1 is noise alone; below it the solver edits what the patches show.
    Source: Meng et al. 2021 (arXiv 2108.01073), SDEdit, on a straight path.
    """
    t = jnp.where(batch.conditioning_mask, conditioning_time, time)[..., None]
    return (1 - t) * batch.patches + t * noise


def renoised(x, noise, conditioning_time: float, time):
    """Patches [B, N, P] that `start_from` put at conditioning_time, taken on along the same path to `time`."""
    keep = (1 - time) / (1 - conditioning_time)
    return keep * x + (time - keep * conditioning_time) * noise


def on_loop(velocity_fn, frames: int, turn):
    """The velocity of a video that is a ring: its last frame comes before its first one.

    The state's frame 0 is no part of the ring and stays as it is, as it is of another kind (a causal autoencoder's
    first latent). In its place the model is shown the frame before the one that comes first in this turn.

    Args:
      velocity_fn: (x, t) -> velocity, [B, N, P].
      frames: in x, that of no part included.
      turn: by how many frames the ring is turned before the model sees it; another one in each step puts the seam
        elsewhere. Source: Bi et al. 2025 (arXiv 2502.20307), latent shift.
    """

    def split(x):
        return jax.reshard(x, spec("batch . .")).reshape(x.shape[0], frames, -1, x.shape[-1])

    def velocity(x, t):
        loop = jnp.roll(split(x)[:, 1:], -turn, axis=1)
        seen = jnp.concatenate([loop[:, -1:], loop], axis=1).reshape(x.shape)
        found = split(velocity_fn(jax.reshard(seen, spec("batch tokens .")), t))[:, 1:]
        found = jnp.pad(jnp.roll(found, turn, axis=1), ((0, 0), (1, 0), (0, 0), (0, 0)))
        return jax.reshard(found.reshape(x.shape), spec("batch tokens ."))

    return velocity
