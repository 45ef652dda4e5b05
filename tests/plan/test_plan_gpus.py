"""`plan` for NVIDIA GPUs: compiled where jax's plugin for CUDA is installed, else estimated and said to be."""

import json
import types

import numpy as np
import pytest
import tiny
from jax._src.cudnn import fused_attention_stablehlo as stablehlo
from test_plan import CONFIGS, TINY, TOLERANCE, run

from sora_jax.core.errors import InputError
from sora_jax.core.mesh import AXES
from sora_jax.plan.collectives import Layout
from sora_jax.plan.gpus import compiling_for, target
from sora_jax.plan.hlo import count
from sora_jax.plan.topology import CHIPS, rate, read_topology


@pytest.fixture
def no_plugin(monkeypatch):
    monkeypatch.setattr("sora_jax.compat.cuda_versions", lambda: None)


@pytest.mark.usefixtures("no_plugin")
def test_gpus_without_their_compiler_are_estimated_and_said_to_be(capsys, tmp_path):
    config = f"--config={CONFIGS / 't2v_1_3b.py'}"
    code, error = run(capsys, config, "--topology=h100:64", "--mesh=fsdp=16,ulysses=4", f"--out={tmp_path}")
    made = json.loads((tmp_path / "plan.json").read_text())
    assert code == 0 and "an estimate throughout; pip install 'sora_jax[cuda]'" in " ".join(error.split())
    assert not made["compiled"] and made["fits"] and "flops" not in made
    assert made["held"]["optimizer"] == pytest.approx(2 * made["held"]["weights"], rel=1e-3)
    assert 0 < made["estimate"]["mfu"][0] <= made["estimate"]["mfu"][1] < 1
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.usefixtures("no_plugin")
def test_only_training_is_planned_for_gpus_without_their_compiler(capsys, tmp_path):
    config = f"--config={CONFIGS / 't2v_1_3b.py'}"
    code, error = run(capsys, config, "--topology=h100:8", "--what=decode", f"--out={tmp_path / 'plan'}")
    assert code == 2 and "GPUs without their compiler: pip install 'sora_jax[cuda]'" in error
    assert not (tmp_path / "plan").exists()


def test_more_gpus_than_a_node_has_are_whole_nodes():
    assert read_topology("h200:4").devices == 4 and read_topology("h200:24").devices == 24
    with pytest.raises(InputError, match=r"h200:12: beyond one node.s 8, h200s come in multiples"):
        read_topology("h200:12")


def test_cudnns_rules_are_asked_of_the_gpu_that_is_planned_for():
    here = stablehlo.check_compute_capability
    for name, hopper in (("a100", False), ("h200", True)):
        with compiling_for(CHIPS[name]):
            assert stablehlo.check_compute_capability("8.0")
            assert stablehlo.check_compute_capability("9.0") == hopper
            assert stablehlo.is_cuda_compute_capability_equal("9.0") == hopper
        assert stablehlo.check_compute_capability is here
    with compiling_for(CHIPS["v5e"]):
        assert stablehlo.check_compute_capability is here


def test_a_gpu_is_described_with_the_versions_that_are_installed(monkeypatch):
    installed = types.SimpleNamespace(cudnn_get_version=lambda: 92801, cuda_runtime_get_version=lambda: 13020)
    monkeypatch.setattr("sora_jax.compat.cuda_versions", lambda: installed)
    text = target(CHIPS["h200"])
    assert "dnn_version_info { major: 9 minor: 28 patch: 1 }" in text
    assert "runtime_version { major: 13 minor: 2 patch: 0 }" in text
    assert (
        f"device_memory_size: {141 * 2**30}\n" in text and "cuda_compute_capability { major: 9 minor: 0 }" in text
    )


def test_gpus_of_several_nodes_are_joined_by_the_network_alone():
    devices = [types.SimpleNamespace(platform="gpu", process_index=n // 8) for n in range(16)]
    mesh = types.SimpleNamespace(axis_names=AXES, devices=np.array(devices).reshape(2, 8, 1, 1, 1))
    layout = Layout(mesh)
    gathered = layout.read("all-gather", "replica_groups=[2,8]<=[16]", 10, 80, scattered=False)
    summed = layout.read("all-reduce", "replica_groups=[8,2]<=[2,8]T(1,0)", 80, 80, scattered=False)
    assert (gathered.axes, gathered.link, len(gathered.group)) == (("fsdp",), "ICI", 8)
    assert (summed.axes, summed.link, summed.group) == (("data",), "DCN", (0, 8))
    chip = CHIPS["h200"]
    assert [rate(read_topology("h200:16"), [], link) for link in ("ICI", "DCN")] == [chip.ici, chip.dcn]


@pytest.mark.parametrize("kernel, products", [("fmhaSoftmax", 2), ("fmhaSoftmaxBackward", 5)])
def test_cudnns_attention_is_counted_by_its_shapes(kernel, products):
    q, k = "bf16[3,512,2,128]", "bf16[3,256,2,128]"
    text = (
        f"ENTRY %main (q: {q}, k: {k}) -> {q} {{\n  %q = {q} parameter(0)\n  %k = {k} parameter(1)\n"
        f'  ROOT %y = {q} custom-call(%q, %k, %k), custom_call_target="__cudnn${kernel}"\n}}\n'
    )
    counts = count(text, tiny.mesh_of())
    assert counts.kernel_flops == {f"cudnn {kernel}": products * 2 * 3 * 2 * 512 * 256 * 128}
    # How much memory its backward pass works in, the compiler can't tell.
    assert len(counts.unknown) == (kernel == "fmhaSoftmaxBackward")


def test_products_of_cublas_are_counted_by_their_shapes():
    text = (
        "ENTRY %main (a: f32[64,32], b: f32[64,16]) -> f32[32,16] {\n  %a = f32[64,32] parameter(0)\n"
        "  %b = f32[64,16] parameter(1)\n  ROOT %y = (f32[32,16], s8[4194304]) custom-call(%a, %b), "
        'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"alpha_real":1,'
        '"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"]}}}\n}\n'
    )
    counts = count(text, tiny.mesh_of())
    assert counts.kernel_flops == {"cublas lt matmul": 2 * 32 * 16 * 64} and counts.unknown == ()


@pytest.fixture
def compiler(optimized):
    pytest.importorskip("jax_cuda13_plugin", reason="the GPU's compiler: pip install sora_jax[cuda]")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("what", ["train", "sample", "decode", "encode"])
def test_a_step_is_compiled_for_gpus_that_are_not_here(what, capsys, tmp_path):
    (tmp_path / "small.py").write_text(TINY)
    arguments = (f"--config={tmp_path / 'small.py'}", "--topology=h200:16", "--mesh=data=2,fsdp=4,ulysses=2")
    arguments += ("--config.data.batch=8", f"--what={what}", f"--out={tmp_path}")
    code, error = run(capsys, *arguments)
    made = json.loads((tmp_path / "plan.json").read_text())
    assert code == 0 and "an estimate" not in error.split("compiled in")[0]
    assert made["compiled"] and made["fits"] and made["flops"] > 0
    assert sum(made["held"].values()) <= made["needed"] * 1.01
    if what in ("train", "sample"):
        assert made["attention"] == "cudnn" and "cudnn fmhaSoftmax" in made["kernel_flops"]
        assert made["all_flops"] * 16 == pytest.approx(made["executed_flops_all_devices"], rel=TOLERANCE)
        links = {axis: c["link"] for c in made["collectives"] for axis in c["axes"] if len(c["axes"]) == 1}
        assert links["fsdp"] == links["ulysses"] == "ICI"
    if what == "train":
        assert links["data"] == "DCN" and len(made["unknown"]) == 1
