"""Every kernel of attention against the reference that holds all logits, forward and gradient, float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sora_jax.models import attention as door
from sora_jax.models.attention import attention, chosen
from sora_jax.models.kernels import splash

# Queries, keys, width of a head: lengths that are no multiple of a block, cross-attention, both published widths.
SHAPES = {"self": (300, 300, 64), "cross": (130, 70, 128), "wide": (260, 520, 128)}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The TPU kernel's program, run step by step."""
    monkeypatch.setitem(door.KERNELS, "splash", functools.partial(splash, interpret=True))


def packed(rng, length, rows=2):
    """Segments of three clips of random lengths and padding at the end, [rows, length] int32."""
    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        ends = np.sort(rng.choice(np.arange(1, length), 3, replace=False))
        for segment, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), 1):
            row[start:end] = segment
    return segments


def inputs(shape, heads=2):
    N, M, K = SHAPES[shape]
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, heads, K)).astype(np.float32) for n in (N, M, M))
    q_segments = packed(rng, N)
    kv_segments = q_segments if shape == "self" else packed(rng, M)
    return (q, k, v), (q_segments, kv_segments)


def run(kernel, arrays, segments, **options):
    """Outputs where there is a clip, and the gradients of a loss on them."""
    real = (segments[0] > 0)[:, :, None, None]
    weights = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32) * real

    @jax.jit
    def both(arrays):
        def loss(arrays):
            y = attention(*arrays, *segments, kernel=kernel, **options)
            return jnp.sum(y * weights), y

        return jax.value_and_grad(loss, has_aux=True)(arrays)

    (_, y), gradients = both(arrays)
    return [np.where(real, y, 0), *map(np.asarray, gradients)]


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kernel", ["chunked", "splash"])
def test_kernel_equals_the_reference_with_its_gradient(one_device, kernel, shape):
    arrays, segments = inputs(shape)
    for ours, reference in zip(run(kernel, arrays, segments), run("xla", arrays, segments), strict=True):
        assert np.abs(reference).max() > 0.1
        np.testing.assert_allclose(ours, reference, atol=1e-5)


@pytest.mark.parametrize("kernel", ["chunked", "splash"])
def test_kernel_is_the_same_on_a_mesh(one_device, kernel):
    arrays, segments = inputs("cross", heads=4)
    alone = run(kernel, arrays, segments, scale=0.3)
    with jax.set_mesh(tiny.mesh_of(data=2, context=2, tensor=2)):
        for ours, reference in zip(run(kernel, arrays, segments, scale=0.3), alone, strict=True):
            np.testing.assert_allclose(ours, reference, atol=1e-5)


def test_chunks_hold_less_than_all_logits(one_device):
    """What XLA says a gradient needs beside its arguments and results, 4,096 queries and keys."""
    shapes = [jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)] * 3
    segments = np.ones((1, 4096), np.int32)

    def temporaries(kernel):
        def loss(q, k, v):
            return jnp.sum(attention(q, k, v, segments, segments, kernel=kernel))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("xla") > 4 * 4096**2
    assert temporaries("chunked") < 4 * 4096**2 / 2


def test_the_kernel_is_chosen_by_platform_and_size(monkeypatch):
    assert chosen("auto", 512, 512) == "xla" and chosen("auto", 4096, 4096) == "chunked"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert chosen("auto", 512, 512) == "splash" and chosen("chunked", 512, 512) == "chunked"
