"""Our norms against Flax's, forward and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from sora_jax.mesh import spec
from sora_jax.models.layers import layer_norm, rms_norm

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
    with jax.set_mesh(tiny.mesh_of(fsdp=2, context=2, tensor=2)):
        axes = "batch tokens heads" if kind == "rms" else "batch tokens ."
        found.append(value_and_gradients(ours, *(jax.device_put(a, spec(axes)) for a in (x, weights))))
    for some in found:
        for mine, other in zip(some, expected, strict=True):
            np.testing.assert_allclose(mine, other, atol=2e-5)
