"""Classifier-free guidance, as a wrapper of a velocity function."""

import jax
import jax.numpy as jnp

from sora_jax.core.mesh import RULES


def in_pairs(x):
    """Each sequence twice, one after the other: [B, ...] -> [2 B, ...], split over "batch".

    Sequences that are split over the mesh stay where they are. Of a replicated one, the two copies go to different
    chips, which then run in parallel.
    """
    rest = jax.typeof(x).sharding.spec[1:]
    return jnp.repeat(x, 2, axis=0, out_sharding=jax.P(RULES["batch"], *rest))


def first_of_pairs(x):
    """The first sequence of each pair; both lie on the same chips: [2 B, ...] -> [B, ...]."""
    rows, *rest = jax.typeof(x).sharding.spec
    pairs = jnp.reshape(x, (len(x) // 2, 2, *x.shape[1:]), out_sharding=jax.P(rows, None, *rest))
    return pairs[:, 0]


def guided(velocity_fn, scale):
    """A velocity function with classifier-free guidance.

    Args:
      velocity_fn: (x, t) -> velocity of pairs (conditional, unconditional), [2 B, N, P], computed in one pass.
      scale: scalar, or of each patch, [B, N, 1]; 1: the conditional velocity.
    Returns: (x, t) -> velocity, [B, N, P], laid out as x is.
    Source: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6, with scale = 1 + w.
    """

    def velocity(x, t):
        rows, *rest = jax.typeof(x).sharding.spec
        times = in_pairs(t) if jnp.ndim(t) and len(t) == len(x) else t
        both = jax.reshard(velocity_fn(in_pairs(x), times), jax.P(rows, *rest))
        both = jnp.reshape(both, (x.shape[0], 2, *x.shape[1:]), out_sharding=jax.P(rows, None, *rest))
        conditional, unconditional = both[:, 0], both[:, 1]
        return jnp.where(scale == 1, conditional, unconditional + scale * (conditional - unconditional))

    return velocity
