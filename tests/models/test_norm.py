"""Our norms and our GELU against Flax's and JAX's, forward and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny
from flax import nnx

from sora_jax.core.mesh import spec
from sora_jax.models.layers.mlp import gelu
from sora_jax.models.layers.norm import layer_norm, rms_norm

MAKE = {
    "rms": (
        lambda: rms_norm(16, "heads", epsilon=1e-3, rngs=nnx.Rngs(0)),
        lambda: nnx.RMSNorm(16, epsilon=1e-3, rngs=nnx.Rngs(0)),
    ),
    "layer": (
        lambda: layer_norm(16, epsilon=1e-3, affine=True, rngs=nnx.Rngs(0)),
        lambda: nnx.LayerNorm(16, epsilon=1e-3, rngs=nnx.Rngs(0)),
    ),
    "plain layer": (
        lambda: layer_norm(16, epsilon=1e-3, affine=False, rngs=nnx.Rngs(0)),
        lambda: nnx.LayerNorm(16, epsilon=1e-3, use_scale=False, use_bias=False, rngs=nnx.Rngs(0)),
    ),
}


def value_and_gradients(make, x, weights):
    graph, state = nnx.split(make())
    state = jax.tree.map(lambda p: p * jnp.linspace(0.5, 1.5, 16) + 0.1, state)

    def loss(state, x):
        y = nnx.merge(graph, state)(x)
        return jnp.sum(y * weights), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(state, x)
    return [np.asarray(a) for a in (y, *jax.tree.leaves(gradients))]


@pytest.mark.parametrize("kind", MAKE)
def test_a_norm_equals_that_of_flax_with_its_gradient(kind):
    draw = np.random.default_rng(0)
    x, weights = (draw.normal(0.5, 2, size=(2, 8, 16)).astype(np.float32) for _ in range(2))
    ours, theirs = MAKE[kind]
    with jax.set_mesh(tiny.mesh_of()):
        expected = value_and_gradients(theirs, x, weights)
        found = [value_and_gradients(ours, x, weights)]
    with jax.set_mesh(tiny.mesh_of(fsdp=2, ulysses=2, tensor=2)):
        axes = "batch tokens heads" if kind == "rms" else "batch tokens ."
        found.append(value_and_gradients(ours, *(jax.device_put(a, spec(axes)) for a in (x, weights))))
    for some in found:
        for mine, other in zip(some, expected, strict=True):
            np.testing.assert_allclose(mine, other, atol=2e-5)


@pytest.mark.parametrize("approximate", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 2**-8)])  # to each number's next
def test_gelu_and_its_gradient_are_rounded_once(approximate, dtype, tolerance):
    x = jnp.linspace(-12, 12, 4001).astype(dtype)
    y, pull = jax.vjp(lambda x: gelu(approximate, x), x)
    (gradient,) = pull(jnp.ones_like(x))
    assert y.dtype == gradient.dtype == x.dtype
    t = np.asarray(x, np.float64)
    if approximate:
        inner, slope = (t + 0.044715 * t**3) * np.sqrt(2 / np.pi), (1 + 3 * 0.044715 * t**2) * np.sqrt(2 / np.pi)
        share, steep = (1 + np.tanh(inner)) / 2, slope / np.cosh(inner) ** 2 / 2
    else:
        share, steep = scipy.stats.norm.cdf(t), scipy.stats.norm.pdf(t)
    # XLA's tanh and erf are off by some 1e-6 where they near -1, and x is up to 12.
    np.testing.assert_allclose(np.asarray(y, np.float64), t * share, rtol=tolerance, atol=1e-5)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), share + t * steep, rtol=tolerance, atol=2e-6)
