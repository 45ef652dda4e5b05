"""Conditioning of a solver: frozen patches, an input video to start from, time that loops."""

import jax
import jax.numpy as jnp

from sora_jax.core.mesh import spec


def freeze_conditioning(velocity_fn, conditioning_mask):
    """A velocity function that is 0 for conditioning patches.

    Args:
      velocity_fn: (x, t) -> velocity, [B, N, P].
      conditioning_mask: [B, N] bool.
    """

    def velocity(x, t):
        return jnp.where(conditioning_mask[..., None], 0.0, velocity_fn(x, t))

    return velocity


def start_from(noise, batch, *, time=1.0, conditioning_time: float = 0.0):
    """The batch's patches with noise, [B, N, P], from which a solver starts.

    Args:
      noise: [B, N, P].
      time: of patches without conditioning; 1: noise alone. Below 1 the solver edits what the patches show.
        Source: Meng et al. 2021 (arXiv 2108.01073), SDEdit, on a straight path.
      conditioning_time: of conditioning patches.
    """
    t = jnp.where(batch.conditioning_mask, conditioning_time, time)[..., None]
    return (1 - t) * batch.patches + t * noise


def refiner_condition(low, trust, noise, level, count: int):
    """The channels beside the noise of a refiner: how far to believe each frame, and the noised input.

    Args:
      low: patches of the input at the output's size, [B, N, count * C].
      trust: in the frames of each patch, [B, N, stride], in [0, 1].
      noise: as low. level: of it, in [0, 1], [B, N, 1] or a scalar.
      count: latents in a patch.
    Returns: [B, N, count * (stride + C)], for each latent the trust times 1 - level, then the channels.
    Source: as Wan 2025 (arXiv 2503.20314), section 5.1, lays out its mask; noise on the condition as in
      Ho et al. 2021 (arXiv 2106.15282).
    """
    noised = (1 - level) * low.astype(jnp.float32) + level * noise
    layout = jax.typeof(noised).sharding.spec
    layout = None if not layout else jax.P(*layout[:2], None, None)
    latents = jnp.reshape(noised, (*noised.shape[:2], count, -1), out_sharding=layout)
    mask = ((1 - level) * trust)[:, :, None]
    mask = jnp.broadcast_to(mask, (*latents.shape[:3], mask.shape[-1]), out_sharding=layout)
    whole = jnp.concatenate([mask, latents], axis=-1)
    layout = layout and jax.P(*layout[:2], None)
    return jnp.reshape(whole, (*noised.shape[:2], -1), out_sharding=layout)


def renoised(x, noise, conditioning_time: float, time):
    """Patches [B, N, P] that have conditioning_time, moved along the path of the same noise to `time`."""
    keep = (1 - time) / (1 - conditioning_time)
    return keep * x + (time - keep * conditioning_time) * noise


def on_loop(velocity_fn, frames: int, turn):
    """The velocity of a looped video, whose last frame comes before its first.

    Frame 0 of x is outside the loop and keeps its value: a causal autoencoder's first latent is of another kind.
    In its place the model sees the frame before the first of the rotated loop.

    Args:
      velocity_fn: (x, t) -> velocity, [B, N, P].
      frames: number in x, frame 0 included.
      turn: frames by which the loop is rotated before the model sees it; a different one in each step moves the
        seam. Source: Bi et al. 2025 (arXiv 2502.20307), latent shift.
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
