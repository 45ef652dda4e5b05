"""What a layer keeps for its backward pass changes what is computed twice, and nothing else."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sora_jax.config.schema import TransformerSettings
from sora_jax.models.layers.remat import POLICIES, run_stack
from sora_jax.train.objectives.flow import FlowObjective

LAYERS = 2


def tiny_with(remat, **changes):
    return tiny.change(tiny.SETTINGS, transformer={"layers": LAYERS, "remat": remat, **changes})


def gradient_of(settings):
    """(a function of parameters that gives the loss and its gradients, its parameters)."""
    objective = FlowObjective(settings)
    batch = tiny.on_mesh(tiny.random_batch(0, settings))
    drawn = objective.draw(jax.random.key(1), batch, 0)

    def loss(params):
        return objective.loss(params, {}, batch, drawn)[0]

    return jax.value_and_grad(loss), objective.init


def random_params():
    """Parameters on the current mesh without the zeros of a fresh model, behind which gradients would hide."""
    _, init = gradient_of(tiny_with("none"))
    shapes = jax.eval_shape(init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(rng.normal(0, 0.1, x.shape).astype(np.float32), x.sharding.spec), shapes
    )


@pytest.fixture
def trained(one_device):
    return random_params()


@pytest.fixture
def trained_on_a_mesh():
    with jax.set_mesh(tiny.mesh_of(fsdp=2, ring=2, ulysses=2)):
        yield random_params()


@pytest.mark.slow
def test_every_policy_gives_the_same_loss_and_gradients(trained_on_a_mesh):
    def of(remat):
        value_and_grad, _ = gradient_of(tiny_with(remat, attention="chunked"))
        return jax.device_get(jax.jit(value_and_grad)(trained_on_a_mesh))

    loss, gradients = of("none")
    largest = max(np.abs(x).max() for x in jax.tree.leaves(gradients))
    assert set(POLICIES) == {"full", "save_attention", "save_products", "offload"}
    for remat in POLICIES:
        found = of(remat)
        np.testing.assert_allclose(found[0], loss, rtol=1e-6)
        jax.tree.map(
            lambda a, b, remat=remat: np.testing.assert_allclose(a, b, atol=1e-6 * largest, err_msg=remat),
            found[1],
            gradients,
        )


def backward_jaxpr(settings, params):
    return jax.make_jaxpr(gradient_of(settings)[0])(params).jaxpr


@pytest.mark.parametrize("remat, forward", [("none", 1), ("full", 2)])
def test_a_stack_without_a_loop_gives_the_same_and_copies_no_layers_values(one_device, remat, forward):
    """Where a loop keeps what the layers keep in one array, [layers, ...]; both compute them as often."""
    draw = np.random.default_rng(0)
    x, blocks = draw.normal(size=(5, 4)), {"w": draw.normal(size=(3, 4, 4))}

    def gradient(unroll):
        def loss(blocks, x):
            y = run_stack(blocks, x, lambda block, x: jnp.tanh(x @ block["w"]), remat=remat, unroll=unroll)
            return jnp.sum(jnp.square(y))

        return jax.grad(loss, argnums=(0, 1))

    shapes = []
    for unroll in (1, 3):
        jaxpr = jax.make_jaxpr(gradient(unroll))(blocks, x).jaxpr
        assert tiny.count(jaxpr, "tanh") == 3 * forward
        shapes.append({var.aval.shape for eqn in jaxpr.eqns for var in eqn.outvars})
    assert (3, 5, 4) in shapes[0] and (3, 5, 4) not in shapes[1]
    for found, expected in zip(*(jax.tree.leaves(jax.jit(gradient(n))(blocks, x)) for n in (3, 1)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_layers_are_unrolled_where_collectives_go_through_gloo(one_device, monkeypatch):
    """Else collectives of a loop and others can overtake each other, and Gloo takes one for the other."""
    x, blocks = np.ones((5, 4)), {"w": np.ones((3, 4, 4))}

    def scans():
        step = functools.partial(run_stack, call=lambda block, x: jnp.tanh(x @ block["w"]), remat="none")
        return tiny.count(jax.make_jaxpr(step)(blocks, x).jaxpr, "scan")

    assert scans() == 1
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert scans() == 0


def product_sizes(jaxpr) -> int:
    """Numbers that matrix products make, times what each is a sum of; turns of loops counted."""
    total = 0
    for eqn in jaxpr.eqns:
        turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += turns * sum(map(product_sizes, jax.extend.core.jaxprs_in_params(eqn.params)))
        if eqn.primitive.name == "dot_general":
            (summed, _), _ = eqn.params["dimension_numbers"]
            total += eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[n] for n in summed)
    return total


def test_saved_products_are_not_computed_again(trained):
    done = {
        remat: product_sizes(backward_jaxpr(tiny_with(remat, attention="chunked"), trained))
        for remat in ("none", "save_products", "save_attention")
    }
    # Norms, which a CPU sums by products, are.
    assert done["none"] < done["save_products"] < 1.02 * done["none"]
    assert done["save_attention"] > 1.15 * done["none"]


@pytest.mark.parametrize("remat, forward", [("none", 1), ("save_attention", 1), ("save_products", 1), ("full", 2)])
def test_saved_attention_is_not_computed_again(trained, remat, forward):
    """Calls of the TPU kernel in forward and backward pass: self-attention and attention to the text."""
    jaxpr = backward_jaxpr(tiny_with(remat, attention="pallas"), trained)
    runs = {half: tiny.count(jaxpr, "pallas_call", half) for half in ("forward", "backward")}
    assert runs == {"forward": 2 * LAYERS * forward, "backward": 2 * LAYERS}


@pytest.mark.parametrize("remat, forward", [("save_attention", 1), ("save_products", 1), ("full", 2)])
def test_saved_attention_is_not_computed_again_on_a_gpu(trained, monkeypatch, remat, forward):
    monkeypatch.setattr("sora_jax.kernels.attention.platform", lambda: "gpu")
    cudnn = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{cudnn}.check_compute_capability", lambda least: True)
    monkeypatch.setattr(f"{cudnn}.check_cudnn_version", lambda: 91000)
    settings = tiny_with(remat, attention="cudnn", dtype="bfloat16", width=64)
    shapes = jax.eval_shape(gradient_of(settings)[1], jax.random.key(0))
    jaxpr = backward_jaxpr(settings, jax.tree.map(lambda x: jnp.zeros(x.shape), shapes))
    assert tiny.count(jaxpr, "dot_product_attention_fwd_wrapper") == 2 * LAYERS * forward


def test_layer_inputs_are_put_into_the_hosts_memory(trained):
    """One transfer there for each layer in the forward pass, one back in the backward pass."""
    kept, offloaded = (
        tiny.count(backward_jaxpr(tiny_with(remat), trained), "device_put") for remat in ("none", "offload")
    )
    assert offloaded - kept == 2 * LAYERS


def test_the_default_keeps_only_each_layers_input():
    assert TransformerSettings().remat == "full"
