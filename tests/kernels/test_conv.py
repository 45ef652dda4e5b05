"""The forms of a convolution that backends are fast with are the same convolution."""

import functools

import jax
import numpy as np
import pytest

from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh, spec
from sora_jax.kernels import ops
from sora_jax.kernels.conv import few_clips, taps_as_channels

plain = ops.conv3d.__wrapped__
SAME, END = [(1, 1), (1, 1)], [(0, 1), (0, 1)]


@pytest.mark.parametrize("layout", [". .", "height .", ". width"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3, 3), (1, 1, 1), SAME), ((1, 3, 3), (1, 2, 2), END), ((3, 3, 3), (2, 2, 2), END)],
)
def test_taps_as_channels_are_the_convolution_and_its_gradients(kernel, stride, padding, layout):
    draw = np.random.default_rng(0).standard_normal
    x, weight = draw((2, 5, 8, 12, 3), np.float32), draw((*kernel, 3, 6), np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def run(form, x, weight):
        y, pull = jax.vjp(lambda x, weight: form(x, weight, stride, padding), x, weight)
        return y, pull(y)

    expected = run(plain, x, weight)
    with jax.set_mesh(make_mesh(MeshSettings(data=1, ulysses=2), jax.devices()[:2])):
        x, weight = jax.device_put(x, spec(f". . {layout} .")), jax.device_put(weight, spec(". . . . ."))
        made = run(taps_as_channels, x, weight)
    assert all(array.sharding.is_equivalent_to(x.sharding, 5) for array in (made[0], made[1][0]))
    for ours, theirs in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


def test_clips_are_few_by_device():
    x = np.zeros((16, 1, 2, 2, 1), np.float32)
    assert not few_clips(x)
    assert few_clips(x[:7])
    with jax.set_mesh(make_mesh(MeshSettings(data=4), jax.devices()[:4])):
        assert few_clips(jax.device_put(x, spec("batch . . . .")))
        assert not few_clips(jax.device_put(x, spec(". . . . .")))
