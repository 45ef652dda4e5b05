"""The text encoder that is trained here: what it must be able to say of a caption from the first update on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from sora_jax.core.mesh import spec
from sora_jax.kernels.relative import QUERIES, toeplitz
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


def test_each_diagonal_of_a_toeplitz_array_is_one_number():
    values = np.arange(2 * 7.0).reshape(2, 7)
    made = np.asarray(toeplitz(jnp.asarray(values), 3, 5))
    for n in range(3):
        np.testing.assert_array_equal(made[:, n], values[:, 2 - n : 7 - n])


def test_captions_of_a_long_sequence_are_embedded_as_each_alone():
    """Sequences above QUERIES are attended in blocks; captions lie across their edges."""
    settings = dataclasses.replace(tiny.SETTINGS.text, max_tokens=40)
    lengths = [40, 7, 33, 40, 40, 25, 40, 39]
    draw = np.random.default_rng(0)
    captions = [draw.integers(1, settings.vocabulary, n) for n in lengths]
    tokens = np.zeros((2, QUERIES + 44), np.int32)
    segment_ids = np.zeros_like(tokens)
    tokens[:, : sum(lengths)] = np.concatenate(captions)
    segment_ids[:, : sum(lengths)] = np.repeat(np.arange(1, 9), lengths)
    with jax.set_mesh(tiny.mesh_of(fsdp=2, ring=2, ulysses=2)):
        encoder = bind(TextEncoder, settings, init_params(TextEncoder, settings, jax.random.key(0)))
        placed = (jax.device_put(x, spec("batch tokens")) for x in (tokens, segment_ids))
        found = np.asarray(jax.jit(encoder)(*placed))[0]
    with jax.set_mesh(tiny.mesh_of()):
        encoder = bind(TextEncoder, settings, init_params(TextEncoder, settings, jax.random.key(0)))
        embed = jax.jit(encoder)
        for caption, last in zip(captions, np.cumsum(lengths), strict=True):
            alone = np.zeros((1, 40), np.int32)
            alone[0, : len(caption)] = caption
            alone = np.asarray(embed(alone, np.int32(alone > 0)))[0, : len(caption)]
            np.testing.assert_allclose(found[last - len(caption) : last], alone, atol=1e-5)
