"""Where cycles go, and that none go to windowed products or to copies around attention."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.experimental import pallas as pl

from sora_jax.cluster.compiler_flags import compiler_options
from sora_jax.config.schema import MeshSettings, TransformerSettings
from sora_jax.core.mesh import make_mesh, spec
from sora_jax.kernels import attention as attention_module
from sora_jax.kernels.ring import BlockKernel
from sora_jax.models.dit import Conditioning, TransformerBlock, no_adapter
from sora_jax.models.layers.params import abstract_params, bind
from sora_jax.plan.cycles import cycles_by_kind
from sora_jax.plan.topology import make_devices, read_topology


def test_cycles_are_told_by_kind_as_often_as_loops_turn():
    text = """
%moved (p0: f32[8,4]) -> f32[4,8] {
  %p0 = f32[8,4]{1,0} parameter(0)
  ROOT %t = f32[4,8]{1,0} transpose(%p0), dimensions={1,0}
}

%added (p1: f32[4,4], p2: f32[4,4]) -> f32[4,4] {
  %p1 = f32[4,4]{1,0} parameter(0)
  %p2 = f32[4,4]{1,0} parameter(1)
  %d = f32[4,4]{1,0} dot(%p1, %p2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %s = f32[4,4]{1,0} add(%d, %p2)
}

%windowed_dot (b: (f32[4,4])) -> (f32[4,4]) {
  %b = (f32[4,4]{1,0}) parameter(0)
  %x = f32[4,4]{1,0} get-tuple-element(%b), index=0
  %w = f32[4,4]{1,0} fusion(%x, %x), kind=kOutput, calls=%added, backend_config={"estimated_cycles":"7"}
  ROOT %r = (f32[4,4]{1,0}) tuple(%w)
}

%condition (c: (f32[4,4])) -> pred[] {
  %c = (f32[4,4]{1,0}) parameter(0)
  ROOT %p = pred[] constant(true)
}

ENTRY %main (a: f32[8,4], m: f32[4,4]) -> f32[4,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %m = f32[4,4]{1,0} parameter(1)
  %f = f32[4,8]{1,0} fusion(%a), kind=kLoop, calls=%moved, backend_config={"estimated_cycles":"5"}
  %e = f32[4,4]{1,0} exponential(%m), backend_config={"estimated_cycles":"3"}
  %g = f32[4,4]{1,0} fusion(%e, %m), kind=kOutput, calls=%added, backend_config={"estimated_cycles":"11"}
  %i = (f32[4,4]{1,0}) tuple(%g)
  %l = (f32[4,4]) while(%i), condition=%condition, body=%windowed_dot, config={"known_trip_count":{"n":"3"}}
  ROOT %o = f32[4,4]{1,0} get-tuple-element(%l), index=0
}
"""
    found = {part.kind: (part.cycles, part.flops) for part in cycles_by_kind(text)}
    product = 2 * 4 * 4 * 4
    assert found == {
        "products": (11, product),
        "windowed products": (21, 3 * product),
        "elementwise": (3, 0),
        "copies": (5, 0),
    }


def mixed(x, *others):
    """A kernel on arrays of attention's form: x [B, A, N, K] plus the first block of each other."""

    def add(*references):
        *read, y = references
        y[...] = sum(part[...] for part in read)

    def block(index):
        return pl.BlockSpec((None, None, 1024, x.shape[-1]), index)

    first = block(lambda a, n: (0, a, 0, 0))
    each = block(lambda a, n: (0, a, n, 0))
    grid, shape = (x.shape[1], x.shape[2] // 1024), jax.ShapeDtypeStruct(x.shape, x.dtype)
    specs = [each, *(first for _ in others)]
    return pl.pallas_call(add, grid=grid, in_specs=specs, out_specs=each, out_shape=shape)(x, *others)


# As quick to compile as attention's own kernels are slow; what is around them is what counts here.
STAND_IN = BlockKernel(
    forward=lambda q, k, v, *ids: (mixed(q, k, v), jnp.zeros(q.shape[:3], jnp.float32)),
    backward=lambda q, k, v, q_ids, kv_ids, y, log_total, dy: (mixed(dy, k, v, y), mixed(k, q, dy), mixed(v, dy)),
    block=lambda n: 1024,
    width=1,
)


@pytest.mark.slow
def test_a_block_of_long_sequences_has_no_windowed_products_and_few_copies(monkeypatch, optimized):
    """Without the flags the compiler makes windowed products above 256 MiB, here of [34816, 8960] in bfloat16."""
    pytest.importorskip("libtpu", reason="the TPU's compiler: pip install sora_jax[plan]")
    monkeypatch.setitem(attention_module.BLOCK_KERNELS, "pallas", STAND_IN)
    settings = TransformerSettings(
        width=1536, heads=12, mlp=8960, layers=1, text_width=4096, attention="pallas", channels=16
    )
    mesh = make_mesh(MeshSettings(data=1, fsdp=4), make_devices(read_topology("v6e:2x2")))
    N, S, D = 34816, 1024, settings.width

    class Block(nnx.Module):
        def __init__(self, settings, *, rngs):
            self.block = TransformerBlock(settings, adapter_of=no_adapter, rngs=rngs)

    def step(params, x, modulation, one_hot, rope, segment_ids, text, text_segment_ids, dy):
        def run(params, x, text):
            conditioning = Conditioning(modulation, one_hot, rope, segment_ids, text, text_segment_ids, None)
            return bind(Block, settings, params).block(x, conditioning)

        return jax.vjp(run, params, x, text)[1](dy)

    def array(axes, *shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, spec(axes)))

    with jax.set_mesh(mesh):
        x = array("batch tokens .", 4, N, D, dtype=jnp.bfloat16)
        segment_ids = array("batch tokens", 4, N, dtype=jnp.int32)
        text = array("batch tokens .", 4, S, D, dtype=jnp.bfloat16)
        rope = (array("batch tokens .", 4, N, D // settings.heads // 2),) * 2
        arguments = (array("batch . . .", 4, 3, 6, D), array("batch tokens .", 4, N, 3), rope, segment_ids, text)
        arguments = (x, *arguments, array("batch tokens", 4, S, dtype=jnp.int32), x)
        lowered = jax.jit(step).lower(abstract_params(Block, settings), *arguments)
        compiled = lowered.compile(compiler_options=compiler_options("v6e"))
    cycles = {part.kind: part.cycles for part in cycles_by_kind(compiled.as_text())}
    assert "windowed products" not in cycles
    assert cycles["copies"] < 0.05 * sum(cycles.values()), cycles
