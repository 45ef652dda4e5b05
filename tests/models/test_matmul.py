import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import AXES, make_mesh, spec
from sora_jax.models.layers.matmul import add_bias, matmul


def jax_matmul(out_sharding, x, w):
    return jax.lax.dot_general(x, w, (((2,), (0,)), ((), ())), out_sharding=out_sharding)


# Axes of x, of w, and of their product.
MANY = ("batch tokens .", "embed mlp", "batch tokens mlp")
FEW = ("few . .", ". embed", "few . embed")  # rows go to the weight


def gradients(function, dtype, out_axes):
    """(x, w) -> those of a sum that weighs each element of the product differently."""

    def loss(x, w):
        y = function(spec(out_axes), x.astype(dtype), w.astype(dtype))
        weights = jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape) % 7
        return jnp.sum(y.astype(jnp.float32) * jax.reshard(weights, spec(out_axes)))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


@pytest.fixture
def mesh():
    with jax.set_mesh(make_mesh(MeshSettings(data=1, fsdp=2, ulysses=2, tensor=2))):
        yield


def factors(axes):
    """x and w laid out by their axes."""
    draw = np.random.default_rng(0)
    shapes = (4, 8, 16), (16, 32)
    arrays = (draw.normal(size=shape).astype(np.float32) for shape in shapes)
    return [jax.device_put(array, spec(name)) for array, name in zip(arrays, axes, strict=False)]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("axes", [MANY, FEW], ids=["many", "few"])
def test_product_and_its_gradients_equal_those_of_jax_on_a_mesh(mesh, axes, dtype, tolerance):
    xw = factors(axes)
    ours, theirs = (gradients(function, dtype, axes[2])(*xw) for function in (matmul, jax_matmul))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.sharding == other.sharding
        np.testing.assert_allclose(mine, other, atol=tolerance * float(np.abs(other).max()))


@pytest.mark.parametrize("axes, gathers", [(MANY, True), (FEW, False)], ids=["many", "few"])
def test_a_weight_is_not_gathered_for_few_vectors(mesh, axes, gathers):
    text = gradients(matmul, "float32", axes[2]).lower(*factors(axes)).compile().as_text()
    assert (" all-gather(" in text) == gathers


def lowered_for(platform, function, *shapes) -> str:
    """The program of a function of bfloat16 arrays for a device of that platform, which need not be here."""
    device = jax.sharding.AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    types = (jax.sharding.AxisType.Explicit,) * len(AXES)
    mesh = jax.sharding.AbstractMesh((1,) * len(AXES), AXES, axis_types=types, abstract_device=device)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def test_only_a_cpu_sums_into_float32_before_it_rounds():
    """Elsewhere a sum over chips would send twice the bytes."""
    texts = {on: lowered_for(on, lambda x, w: matmul(None, x, w), (1, 8, 16), (16, 32)) for on in ("cpu", "tpu")}
    assert "-> tensor<1x8x32xf32>" in texts["cpu"]
    assert "f32" not in texts["tpu"].replace("bf16", "")


def test_the_gradient_of_a_bias_equals_that_of_jax_on_a_mesh():
    draw = np.random.default_rng(0)
    with jax.set_mesh(make_mesh(MeshSettings(data=1, fsdp=2, ulysses=2, tensor=2))):
        y, weights = (draw.normal(size=(4, 8, 32)).astype(np.float32) for _ in range(2))
        y, weights = (jax.device_put(a, spec("batch tokens mlp")) for a in (y, weights))
        bias = jax.device_put(draw.normal(size=32).astype(np.float32), spec("mlp"))
        ours, theirs = (
            jax.jit(jax.grad(lambda y, b, add=add: jnp.sum(weights * add(y, b) ** 2), argnums=(0, 1)))(y, bias)
            for add in (add_bias, jnp.add)
        )
        for mine, other in zip(ours, theirs, strict=True):
            assert mine.sharding == other.sharding
            np.testing.assert_allclose(mine, other, rtol=1e-5)


def test_only_a_cpu_sums_the_gradient_of_a_bias_in_float32():
    """XLA:CPU sums bfloat16 in windows; elsewhere the program is JAX's own."""
    gradient = jax.grad(lambda bias, y: add_bias(y, bias).sum())
    sums = {on: lowered_for(on, gradient, (32,), (1, 8, 32)) for on in ("cpu", "tpu")}
    across_rows = r"dimensions = \[0, 1\] : \(tensor<1x8x32x(\w+)>"
    assert {on: set(re.findall(across_rows, text)) for on, text in sums.items()} == {
        "cpu": {"f32"},
        "tpu": {"bf16"},
    }
