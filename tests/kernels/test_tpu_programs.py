"""What the TPU compiler makes of the code: for pods that are not there, on any machine with libtpu."""

import math
import os
import re

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax.experimental import topologies

from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh, spec
from sora_jax.kernels.attention import attention
from sora_jax.train.objectives.flow import FlowObjective

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def topology():
    """(name, slices) -> the devices of a pod."""
    pytest.importorskip("libtpu", reason="pip install libtpu: the TPU compiler, which needs no TPU")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no cloud's metadata server is here
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

    def devices(name, slices=1):
        return topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices).devices

    # Other tests want their programs soon; here they are looked at as they would run.
    few = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield devices
    jax.config.update("jax_disable_most_optimizations", few)


def typed(x, axes, mesh):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec(axes)))


def computations(text):
    """The instructions of each computation of a compiled program, in the order that they are started in."""
    return [body.splitlines() for body in re.split(r"^(?:ENTRY )?%\S+ \(.*\{$", text, flags=re.MULTILINE)]


def runs_a_kernel(line):
    """Attention's, or the branch that runs it where a hop's keys share a clip with the queries."""
    return " conditional(" in line or (" custom-call(" in line and "attention_" in line)


def test_a_ring_sends_while_its_kernels_compute(topology):
    """Between each start of a send of keys or of their gradients and its end runs a kernel; only the last step of
    the gradients, home from the last kernel, has none to hide behind."""
    mesh = make_mesh(MeshSettings(data=1, ring=4), topology("v5e:2x2"))
    x = typed(jax.ShapeDtypeStruct((1, 4096, 4, 128), jnp.bfloat16), "batch tokens heads .", mesh)
    segment_ids = typed(jax.ShapeDtypeStruct((1, 4096), jnp.int32), "batch tokens", mesh)

    def loss(q, k, v, segment_ids):
        y = attention(q, k, v, segment_ids, segment_ids, kernel="pallas")
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, segment_ids).compile().as_text()
    hidden, seen = 0, []
    for lines in computations(text):
        for start, line in enumerate(lines):
            if not (sent := re.match(r" *%(collective-permute-start[.\d]*) =", line)):
                continue
            (end,) = (n for n, other in enumerate(lines) if f"collective-permute-done(%{sent[1]})" in other)
            if any(runs_a_kernel(other) for other in lines[start:end]):
                hidden += 1
            else:
                seen.append(line)
    assert len(seen) <= 2, seen
    # In the loops keys, values and segments, and in the backward one two gradients more.
    assert hidden >= 3 + 5


def test_slices_exchange_only_their_shards_of_the_gradients(topology):
    """Gradients are summed within a slice, split over fsdp, before they cross the slow network."""
    settings = tiny.change(
        tiny.SETTINGS, transformer={"width": 256, "mlp": 1024, "layers": 1}, data={"sequence_length": 64}
    )
    mesh = make_mesh(MeshSettings(data=2, fsdp=4), topology("v5e:2x2", 2))
    objective = FlowObjective(settings)

    def step(params, batch):
        drawn = objective.draw(jax.random.key(1), batch, 0)
        grads = jax.grad(lambda params: objective.loss(params, {}, batch, drawn)[0])(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    with jax.set_mesh(mesh):
        params = jax.eval_shape(lambda: objective.init(jax.random.key(0)))
        params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, x.sharding.spec)),
            params,
        )
        batch = jax.tree.map(
            lambda x: typed(x, "batch tokens" + " ." * (x.ndim - 2), mesh), tiny.random_batch(0, settings)
        )
        text = jax.jit(step).lower(params, batch).compile().as_text()
    crossing = re.findall(
        r"= \(\w+\[([\d,]*)\][^=\n]* send\(.*_xla_megascale_reduce_operation=\"SUM\".*"
        r"_xla_megascale_transfer_type=\"ALL_REDUCE\"",
        text,
    )
    sent = sum(math.prod(map(int, shape.split(","))) for shape in crossing if shape)
    shards = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(params))
    everything = sum(x.size for x in jax.tree.leaves(params))
    assert 0.9 * shards < sent < 1.1 * shards < everything / 2
