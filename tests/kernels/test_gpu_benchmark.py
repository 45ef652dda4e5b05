"""tests/benchmarks/gpu.py runs without a GPU, and the two forms of a packed sequence that it times are equal."""

import argparse
import importlib.util
import pathlib

import jax
import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / "benchmarks/gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_clips_as_padded_rows_give_what_the_packed_sequence_gives(one_device, gpu):
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 300, 2, 16)).astype(np.float32)
    forms = gpu.attention_forms([130, 20, 150])
    assert list(forms) == ["chunked, packed", "chunked, padded"]
    packed, padded = (np.asarray(jax.jit(attend)(q, k, v)) for attend in forms.values())
    assert np.abs(packed).max() > 0.1
    np.testing.assert_allclose(packed, padded, atol=1e-6)


@pytest.mark.parametrize("part", ["attention", pytest.param("ours", marks=pytest.mark.slow)])
def test_the_benchmark_for_gpus_runs_on_a_cpu(gpu, part, tmp_path, capsys):
    options = argparse.Namespace(layers=1, grid=(2, 8, 8), steps=3, remat="save_products", out=tmp_path)
    if part == "attention":
        found = gpu.attention_times(options)
        times = [(of["clips"], of["form"], of["gradient"]) for of in found["attention"]]
        assert len(set(times)) == 6 and all(of["seconds"] > 0 for of in found["attention"])
        gpu.report_attention(options, found)
        assert "| 16 | chunked, padded | forward and gradient |" in capsys.readouterr().out
    else:
        found = gpu.ours(options)
        assert found["seconds"] > 0 and found["TFLOP/s"] > 0
        gpu.report_steps(options, {"ours": found})
        assert "| ours |" in capsys.readouterr().out
