"""Random keys: `fold_in(fold_in(key(seed), purpose), number)`, so that no two uses draw the same bits.

Sampling predates the purposes, and a seed is to make the same video as before: the noise of video n is of
`fold_in(key(seed), n)`, and step i of a solver that adds noise draws from `fold_in(that, i)`. Such numbers stay
below 2^31, and purposes start there.
"""

import enum

import jax
import numpy as np


class Purpose(enum.IntEnum):
    """Every use of randomness that has a seed of its own, except the noise of a video."""

    INIT = 2**31  # parameters of a new model
    DISCRIMINATOR_INIT = 2**31 + 1
    NOISE = 2**31 + 2  # of the training step with that number
    TIMES = 2**31 + 3  # noise times of that step
    POSTERIOR = 2**31 + 4  # of the autoencoder's latents in that step
    VALIDATION = 2**31 + 5  # noise of the validation batch with that number
    WINDOW = 2**31 + 6  # base key of that window of a long video, after the first
    RENEWED_NOISE = 2**31 + 7  # that a student's sample gets in the training step with that number
    CONDITION_NOISE = 2**31 + 8  # of a refiner's condition, in that step or that window


def seed_key(seed: int) -> jax.Array:
    """The key of a seed from 0 to 2^64 - 1; `jax.random.key` would drop the upper half."""
    halves = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(halves, impl="threefry2x32")


def purpose_key(key: jax.Array, purpose: Purpose, number: int | jax.Array = 0) -> jax.Array:
    """The key of a purpose's use with that number.

    Args:
      key: of the seed.
    """
    return jax.random.fold_in(jax.random.fold_in(key, np.uint32(purpose)), number)
