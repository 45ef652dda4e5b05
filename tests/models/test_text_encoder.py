"""The text encoder that is trained here: what it must be able to say of a caption from the first update on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from sora_jax.models.layers.params import bind, init_params
from sora_jax.models.text_encoder import TextEncoder

A, AND, RED, BLUE, CIRCLE, SQUARE = range(1, 7)


def test_a_fresh_encoder_tells_which_word_stands_beside_which(one_device):
    # A red circle and a blue square, and the other way round: the same words, and the circle in the same place.
    captions = jnp.array([[A, RED, CIRCLE, AND, A, BLUE, SQUARE], [A, BLUE, CIRCLE, AND, A, RED, SQUARE]])
    settings = dataclasses.replace(tiny.SETTINGS.text, width=32, head_dim=8)
    encoder = bind(TextEncoder, settings, init_params(TextEncoder, settings, jax.random.key(0)))
    one, other = np.asarray(encoder(captions, jnp.ones_like(captions)))[:, 2]
    assert np.linalg.norm(one - other) > 0.1 * np.linalg.norm(one)
