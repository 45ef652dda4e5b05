"""`plan` counts what compiled programs do, and holds the configurations to chips that are not here."""

import dataclasses
import json
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny

from sora_jax.cli.main import main
from sora_jax.core.mesh import AXES, spec
from sora_jax.plan import estimate
from sora_jax.plan.attention import KernelCall, kernel_cycles
from sora_jax.plan.collectives import first_group
from sora_jax.plan.hlo import Program, count
from sora_jax.plan.plan import out_of_memory
from sora_jax.plan.programs import chip_bytes, make_program, split_over
from sora_jax.plan.topology import CHIPS, rate, read_topology

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"
TOLERANCE = 0.05  # between the FLOPs of a compiled program and those of the formulas
# Wide enough that matrix products are nearly all of the FLOPs, as in models of use.
SETTINGS = tiny.change(
    tiny.SETTINGS,
    data={"batch": 8, "sequence_length": 256, "text_length": 32, "clips_per_sequence": 1},
    text={"width": 64, "heads": 4, "head_dim": 16, "mlp": 128, "max_tokens": 32},
    transformer={"text_width": 64, "width": 256, "heads": 4, "mlp": 512, "layers": 3, "attention": "xla"},
)


def counted(function, *arguments, **sizes):
    """What a program on a mesh of fake devices does; arguments are (shape, axes) of float32 arrays."""
    mesh = tiny.mesh_of(**sizes)
    with jax.set_mesh(mesh):
        types = [
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, spec(axes)))
            for shape, axes in arguments
        ]
        return count(jax.jit(function).lower(*types).compile().as_text(), mesh)


def counted_step(settings, **sizes):
    mesh = tiny.mesh_of(**sizes)
    with jax.set_mesh(mesh):
        program = make_program(settings, "train")
        return program, count(program.lower().compile().as_text(), mesh)


def test_loops_in_loops_count_as_often_as_they_turn():
    def nested(x, w):
        def inner(x, _):
            return jnp.tanh(x @ w), None

        def outer(x, _):
            return jax.lax.scan(inner, x, None, length=5)[0], None

        return jax.lax.scan(outer, x, None, length=7)[0]

    counts = counted(nested, ((16, 32), ". ."), ((32, 32), ". ."))
    assert counts.flops == 5 * 7 * 2 * 16 * 32 * 32
    assert counts.unknown == ()


def test_a_loop_without_a_noted_trip_count_is_counted_by_its_counter():
    text = """
%condition (p: (s32[], f32[4,4])) -> pred[] {
  %limit = s32[] constant(9)
  %p = (s32[], f32[4,4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (p.1: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %p.1 = (s32[], f32[4,4]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%p.1), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i.1, %two)
  %dot = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[4,4]) tuple(%next, %dot)
}

ENTRY %main (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %start = s32[] copy(%one)
  %both = (s32[], f32[4,4]) tuple(%start, %a)
  %while = (s32[], f32[4,4]) while(%both), condition=%condition, body=%body
  ROOT %out = f32[4,4]{1,0} get-tuple-element(%while), index=1
}
"""
    counts = count(text, tiny.mesh_of())
    assert counts.flops == 4 * 2 * 4 * 4 * 4  # i = 1, 3, 5, 7
    assert Program(text).run_counts(set()) == {"main": 1, "body": 4}
    unknown = count(text.replace("constant(9)", "parameter(1)"), tiny.mesh_of())
    assert unknown.flops == 2 * 4 * 4 * 4 and "trips of the loop while" in unknown.unknown[0]


def test_of_what_a_fusion_cuts_only_the_part_is_read_and_written():
    text = """
%cut (p0: f32[10,4,4], p1: s32[], p2: f32[10,4,4]) -> f32[10,4,4] {
  %p0 = f32[10,4,4]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[10,4,4]{2,1,0} parameter(2)
  %zero = s32[] constant(0)
  %part = f32[1,4,4]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,4,4}
  ROOT %put = f32[10,4,4]{2,1,0} dynamic-update-slice(%p2, %part, %p1, %zero, %zero)
}

ENTRY %main (a: f32[10,4,4], i: s32[], b: f32[10,4,4]) -> f32[10,4,4] {
  %a = f32[10,4,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[10,4,4]{2,1,0} parameter(2)
  %near = f32[10,4,4]{2,1,0:T(8,128)S(1)} copy(%b)
  ROOT %f = f32[10,4,4]{2,1,0} fusion(%a, %i, %b), kind=kLoop, calls=%cut
}
"""
    copied = 4 * 160  # read for a copy into the chip's fast memory
    assert count(text, tiny.mesh_of()).hbm_bytes == copied + 4 * 16 + 4 + 4 * 16


@pytest.mark.parametrize(
    "attributes, flops",
    [
        # [16, 32] x [32, 8] as TPU programs write it.
        ("convolution(%a, %b), window={size=1}, dim_labels=0bf_io0->0bf", 2 * 16 * 8 * 32),
        # Two products of a batch, made of a window over a dilated dimension that meets each once.
        ("batched", 2 * 2 * 16 * 8 * 32),
        # A 3-tap convolution along 16 places with one place of padding at both ends: the ends meet two taps.
        ("padded", 2 * (3 * 16 - 2) * 8 * 32),
    ],
)
def test_matrix_products_written_as_convolutions_are_counted(attributes, flops):
    shapes = {
        "batched": (
            "f32[2,16,32]",
            "f32[2,32,8]",
            "f32[2,16,8]",
            "convolution(%a, %b), window={size=2 stride=1 lhs_dilate=2}, dim_labels=0bf_0io->0bf",
        ),
        "padded": (
            "f32[1,16,32]",
            "f32[3,32,8]",
            "f32[1,16,8]",
            "convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
        ),
    }
    left, right, made, call = shapes.get(attributes, ("f32[1,16,32]", "f32[32,8,1]", "f32[1,16,8]", attributes))
    text = (
        f"ENTRY %main (a: {left}, b: {right}) -> {made} {{\n  %a = {left} parameter(0)\n"
        f"  %b = {right} parameter(1)\n  ROOT %c = {made} {call}\n}}\n"
    )
    assert count(text, tiny.mesh_of()).flops == flops


@pytest.mark.parametrize("rows", ["3,", ""], ids=["rows", "one row"])
def test_an_attention_kernel_is_counted_by_its_shapes(rows):
    q, k, part = f"bf16[{rows}2,512,128]", f"bf16[{rows}2,256,128]", "s32[8]"
    text = (
        f"ENTRY %main (m: {part}, q: {q}, k: {k}) -> {q} {{\n  %m = {part} parameter(0)\n  %q = {q} parameter(1)\n"
        f"  %k = {k} parameter(2)\n  ROOT %attention_backward.1 = {q} custom-call(%m, %q, %k, %k), "
        f'custom_call_target="tpu_custom_call"\n}}\n'
    )
    products = 5 * 2 * 2 * 512 * 256 * 128 * (3 if rows else 1)
    assert count(text, tiny.mesh_of()).kernel_flops == {"attention_backward": products}


@pytest.mark.parametrize(
    "text, group",
    [
        ("{{0,2},{1,3}}, x", (0, 2)),
        ("[4,2]<=[8], x", (0, 1)),
        ("[4,2]<=[2,2,2]T(2,1,0), x", (0, 4)),
        ("mesh['a'=2,'b'=2,'c'=2], device_ids=([2,2,2]T(0,2,1)) {'b'}, x", (0, 1)),
        ("mesh['a'=2,'b'=4] {'b'}, x", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=4] {'b':(1)2}, x", (0, 2)),
        ("{}, x", tuple(range(8))),
    ],
)
def test_replica_groups_are_read_in_every_form(text, group):
    assert first_group(f" channel_id=1, replica_groups={text}", 8) == group


def test_collectives_are_told_by_kind_axis_and_bytes():
    def loss(w, x):
        return jnp.sum(jnp.square(jnp.einsum("bnd,dm->bnm", x, w, out_sharding=spec("batch tokens ."))))

    arguments = ((64, 32), "embed ."), ((8, 16, 64), "batch tokens .")
    counts = counted(jax.grad(loss), *arguments, data=2, fsdp=4)
    found = {(c.kind, c.axes): c for c in counts.collectives}
    gathered = found["all-gather", ("fsdp",)]
    assert gathered.bytes == gathered.count * 64 * 32 * 4 and gathered.wire == gathered.bytes * 3 / 4
    # However XLA sums a gradient over both axes, no chip sends less than its share of it, or twice of it all.
    reduced = sum(c.wire for c in counts.collectives if "reduce" in c.kind)
    assert 64 * 32 * 4 * 7 / 8 <= reduced <= 2 * 64 * 32 * 4
    assert {c.link for c in counts.collectives} == {"ICI"}


@pytest.mark.parametrize(
    "remat, sizes",
    [
        pytest.param("none", {}, id="one chip"),
        pytest.param("full", {"fsdp": 2, "ulysses": 2, "tensor": 2}, id="eight", marks=pytest.mark.slow),
    ],
)
def test_compiled_and_formula_agree_on_the_flops_of_a_step(remat, sizes):
    settings = tiny.change(SETTINGS, transformer={"remat": remat})
    program, counts = counted_step(settings, **sizes)
    executed = estimate.executed_flops(settings, "train", program.shape)
    assert counts.all_flops * math.prod(sizes.values()) == pytest.approx(executed, rel=TOLERANCE)
    assert counts.unknown == ()


@pytest.mark.slow
def test_cost_of_a_chip_stays_flat_as_data_grows():
    found = {}
    for data in (2, 8):
        settings = tiny.change(SETTINGS, data={"batch": data})
        program, counts = counted_step(settings, data=data)
        found[data] = (counts.all_flops, sum(c.bytes for c in counts.collectives))
    flops, moved = zip(*found.values(), strict=True)
    assert max(flops) <= min(flops) * 1.01
    # Twice the chips hold twice the batch, and each sums the same gradients.
    gradients = sum(4 * x.size for x in jax.tree.leaves(program.parts["weights"]))
    assert max(moved) <= min(moved) * 1.01
    assert min(moved) == pytest.approx(gradients, rel=0.05)


PODS = {  # 4,096 chips
    "t2v_1_3b": {"data": 64, "fsdp": 16, "ulysses": 4},
    "t2v_5b": {"data": 16, "fsdp": 32, "ulysses": 8},
    "t2v_14b": {"data": 8, "fsdp": 64, "ulysses": 8},
}


@pytest.mark.parametrize("name", PODS)
def test_a_step_keeps_its_contract_on_4096_chips(name):
    from test_configs import load, step_types, types_of

    settings = load(CONFIGS / f"{name}.py", f"--config.data.batch={4096}")
    sizes = {axis: PODS[name].get(axis, 1) for axis in AXES}
    mesh = jax.sharding.AbstractMesh(
        tuple(sizes.values()), AXES, axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES)
    )
    assert mesh.size == 4096
    state, after, metrics = step_types(settings, mesh)
    # What a step takes it gives, shape by shape and shard by shard, or the next one would compile anew.
    assert types_of(after) == types_of(state)
    assert {x.shape for x in jax.tree.leaves(metrics)} == {()}
    # No chip holds a large array whole, and what it holds does not grow with the number of chips.
    assert all("fsdp" in split_over(x) for x in jax.tree.leaves(state) if x.size > 2**22)
    few = chip_bytes(state, sizes | {"data": 1})
    assert chip_bytes(state, sizes) == few < 16 * 2**30


def test_bytes_held_are_those_of_the_state_on_its_mesh():
    sizes = {"data": 1, "fsdp": 2, "ulysses": 2, "tensor": 2}
    with jax.set_mesh(tiny.mesh_of(**sizes)):
        program = make_program(SETTINGS, "train")
    whole = dict.fromkeys(AXES, 1)
    held = estimate.held(SETTINGS, whole | sizes)
    assert held == {name: chip_bytes(program.parts[name], whole | sizes) for name in held}
    count_all = sum(x.size for x in jax.tree.leaves(program.parts["weights"]))
    assert estimate.held(SETTINGS, whole)["weights"] == 4 * count_all


def test_a_ring_of_links_is_twice_a_line_of_them():
    topology = read_topology("v5p:4x4x8")
    link = CHIPS["v5p"].ici / 3

    def of(*places):
        return rate(topology, [type("Device", (), {"coords": place}) for place in places], "ICI")

    line = of((0, 0, 0), (0, 0, 1))
    ring = of(*((0, n, 0) for n in range(4)))
    assert (line, ring) == (link / 2, link)
    assert of(*((0, n, m) for n in range(4) for m in range(8))) == 2 * link
    assert rate(topology, [], "DCN") == CHIPS["v5p"].dcn


def test_the_compilers_complaint_tells_the_bytes_needed():
    said = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 27.70G of 15.75G hbm. Exceeded hbm capacity by 11.95G."
    )
    assert out_of_memory(said) == pytest.approx(27.7 * 2**30)
    assert out_of_memory("INTERNAL: something else") is None


def run(capsys, *arguments) -> tuple[int, str]:
    code = main(["plan", *arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("--topology=v5q:4x4x4",), "no chip 'v5q', did you mean 'v5p'"),
        (("--topology=cray",), "known: a100, h100, h200, tpu7x, v5e, v5p, v6e"),
        (("--topology=v5p:4x4",), "three sides"),
        (("--topology=v5e:3x4",), "v5e comes in 2x4, 4x4, 4x8; no side is 3"),
        (("--topology=v5e:32x32",), "at most 256 chips; take --slices"),
        (("--topology=h100:8", "--slices=2"), "slices are of TPU"),
        (("--topology=h100:8", "--mesh=fsdp=3"), "do not multiply to the 8 devices"),
        (("--topology=h100:64", "--mesh=fsdp=8,ulysses=8"), "ulysses x tensor = 8"),
        (("--topology=h100:8", "--mesh=data=8", "--config.data.batch=12"), "batch: 12 must be a multiple"),
        (("--topology=h100:8", "--mesh=fdsp=8"), "no axis 'fdsp', did you mean 'fsdp'"),
        (("--topology=h100:8", "--what=sampel"), "did you mean 'sample'"),
        (("--topology=v5e:8x8", "--what=decode", "--formulas"), "--formulas are for a training step"),
        ((), "--topology is missing"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, arguments, told):
    config = f"--config={CONFIGS / 't2v_1_3b.py'}"
    code, error = run(capsys, config, f"--out={tmp_path / 'plan'}", *arguments)
    assert code == 2 and told in error and error.count("\n") == 1
    assert not (tmp_path / "plan").exists()


def test_without_libtpu_the_line_to_install_it_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    config = f"--config={CONFIGS / 't2v_1_3b.py'}"
    code, error = run(capsys, config, "--topology=v5e:8x8", f"--out={tmp_path}")
    assert code == 2 and "pip install 'sora_jax[plan]'" in error


def test_formulas_need_no_compiler(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    config = f"--config={CONFIGS / 't2v_1_3b.py'}"
    code, error = run(capsys, config, "--topology=v5e:8x8", "--formulas", f"--out={tmp_path}")
    made = json.loads((tmp_path / "plan.json").read_text())
    assert code == 0 and "an estimate throughout" in error
    assert not made["compiled"] and made["attention"] == "pallas" and made["devices"] == 64


def test_what_does_not_fit_is_told_with_the_nearest_that_does(capsys, tmp_path):
    config = f"--config={CONFIGS / 't2v_14b.py'}"
    arguments = ("--topology=h100:64", "--mesh=fsdp=64", "--config.data.batch=64", "--config.train.accumulate=1")
    code, error = run(capsys, config, *arguments, "--config.transformer.remat=none", f"--out={tmp_path}")
    assert code == 2
    told = error.splitlines()[-1]
    assert "does not fit, by" in told and "this fits: --mesh=" in told
    made = json.loads((tmp_path / "plan.json").read_text())
    assert not made["fits"] and made["instead"]["fits"] and made["instead"]["needed"] < 80 * 2**30


def test_a_search_ranks_what_divides(capsys, tmp_path):
    config = f"--config={CONFIGS / 't2v_1_3b.py'}"
    code, error = run(capsys, config, "--topology=h100:8", "--search", f"--out={tmp_path}")
    assert code == 0 and "best first" in error
    made = json.loads((tmp_path / "plan.json").read_text())
    assert made["fits"] and math.prod(made["mesh"].values()) == 8


TINY = """
from sora_jax.config.load import default_config


def get_config():
    config = default_config()
    config.autoencoder.update(width=8, decoder_width=8, multipliers=(1, 1, 2, 2), blocks=1, latent_channels=4)
    config.text.update(vocabulary=64, width=128, heads=4, head_dim=32, mlp=256, layers=1, max_tokens=128)
    config.text.weights = "umt5"
    config.transformer.update(channels=4, text_width=128, width=256, heads=2, mlp=1024, layers=2, frequencies=16)
    config.data.update(batch=4, sequence_length=1024, text_length=128, clips_per_sequence=1)
    config.sample.update(size="64x64", frames=5)
    return config
"""


@pytest.fixture
def compiler(optimized):
    pytest.importorskip("libtpu", reason="the TPU's compiler: pip install sora_jax[plan]")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("what", ["train", "sample", "decode", "encode"])
def test_a_step_is_compiled_for_chips_that_are_not_here(what, capsys, tmp_path):
    (tmp_path / "small.py").write_text(TINY)
    arguments = (f"--config={tmp_path / 'small.py'}", "--topology=v5e:2x2", "--mesh=fsdp=2,ulysses=2")
    code, error = run(capsys, *arguments, f"--what={what}", f"--out={tmp_path}")
    made = json.loads((tmp_path / "plan.json").read_text())
    assert code == 0 and "an estimate" not in error.split("compiled in")[0]
    assert made["fits"] and made["unknown"] == [] and made["flops"] > 0
    assert sum(made["held"].values()) <= made["needed"] * 1.01
    if what in ("train", "sample"):
        assert made["attention"] == "pallas" and "attention_forward" in made["kernel_flops"]
        assert made["all_flops"] * 4 == pytest.approx(made["executed_flops_all_devices"], rel=TOLERANCE)
        # Short sequences: most of a kernel's steps is not its products.
        kinds = {part["kind"] for part in made["cycles_by_kind"]}
        assert "products" in kinds and "windowed products" not in kinds
        assert 0 < made["schedule"]["attention_share"] < 1 and 0 < made["schedule"]["mfu"] < 0.5
        assert {"ulysses", "fsdp"} <= {axis for c in made["collectives"] for axis in c["axes"]}


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_the_compiler_tells_by_how_much_a_step_is_too_large(capsys, tmp_path):
    (tmp_path / "small.py").write_text(TINY)
    large = (
        "--config.data.sequence_length=131072",
        "--config.transformer.layers=32",
        "--config.transformer.remat=none",
    )
    arguments = (f"--config={tmp_path / 'small.py'}", "--topology=v5e:2x2", "--mesh=fsdp=4", *large)
    code, error = run(capsys, *arguments, f"--out={tmp_path}")
    made = json.loads((tmp_path / "plan.json").read_text())
    assert code == 2 and "does not fit, by" in error
    assert not made["fits"] and made["needed"] > 16 * 2**30
    assert made["instead"]["fits"]


def test_attention_costs_its_grid_steps_and_shares_the_cores():
    """By the measured cycles of a step, and never less than the products take at the chip's full rate."""
    call = KernelCall("attention_backward", (1, 8, 32768, 128), 32768, 1.0)
    products = 5 * 2 * 8 * 32768**2 * 128
    for name in ("v5e", "v5p", "v6e", "tpu7x"):
        chip = CHIPS[name]
        cycles = kernel_cycles(call, chip)
        assert 1.0 <= cycles / (products / chip.peak * chip.clock) < 2.0
        twice = dataclasses.replace(call, queries=(2, 8, 32768, 128), times=3.0)
        assert kernel_cycles(twice, chip) == pytest.approx(6 * cycles)
    # Of three heads one of v5p's two cores has two.
    three = dataclasses.replace(call, queries=(1, 3, 32768, 128))
    assert kernel_cycles(three, CHIPS["v5p"]) == kernel_cycles(call, CHIPS["v5p"]) / 2
    assert kernel_cycles(three, CHIPS["v6e"]) == pytest.approx(kernel_cycles(call, CHIPS["v6e"]) * 3 / 8)
