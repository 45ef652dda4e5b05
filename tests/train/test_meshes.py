"""One model on many meshes: the same loss and the same gradients as on one device."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_video_model import placed, random_params, velocity_and_errors

from sora_jax.core.mesh import AXES

MESHES = [
    {"data": 2, "fsdp": 2, "ulysses": 2},
    {"fsdp": 2, "ulysses": 2, "tensor": 2},
    {"data": 2, "tensor": 4},
    {"fsdp": 2, "ring": 2, "ulysses": 2},
]
SIZES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=len(AXES)) if math.prod(sizes) == 8]


@pytest.mark.slow
def test_four_meshes_agree_with_one_device_on_loss_and_gradients():
    # Chunks, so that rings go round as those of long rows do.
    assert_meshes_agree(tiny.change(tiny.SETTINGS, transformer={"attention": "chunked"}), MESHES)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_mesh_that_divides_eight_devices_agrees_with_one_on_loss_and_gradients():
    settings = tiny.change(
        tiny.SETTINGS,
        transformer={"attention": "chunked", "heads": 8},
        text={"heads": 8},
        data={"text_length": 16},
    )
    assert len(SIZES) == 35
    assert_meshes_agree(settings, [dict(zip(AXES, sizes, strict=True)) for sizes in SIZES])


def assert_meshes_agree(settings, meshes):
    with jax.set_mesh(tiny.mesh_of()):
        params, batch = random_params(settings), tiny.random_batch(0, settings)
    noise = np.random.default_rng(1).normal(size=batch.patches.shape).astype(np.float32)
    times = np.random.default_rng(2).uniform(size=(8, 3)).astype(np.float32)

    @jax.jit
    def loss_and_grads(params, batch):
        return jax.value_and_grad(
            lambda params: jnp.mean(velocity_and_errors.__wrapped__(settings, params, batch, noise, times)[1])
        )(params)

    def assert_close(a, b):
        # Sums over chips are made in another order: 1e-5 of the largest gradient.
        np.testing.assert_allclose(a, b, atol=1e-5 * largest, err_msg=str(mesh))

    expected = None
    for mesh in ({}, *meshes):
        with jax.set_mesh(tiny.mesh_of(**mesh)):
            got = jax.device_get(loss_and_grads(placed(params, settings), tiny.on_mesh(batch)))
        expected = expected or got
        largest = max(np.abs(g).max() for g in jax.tree.leaves(expected[1]))
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, err_msg=str(mesh))
        jax.tree.map(assert_close, got[1], expected[1])
        # Each compiled program keeps memory mapped, and the system lets a process have only so many pieces of it.
        jax.clear_caches()
