"""Tensors of published files: fp8 and its scales, other containers, files written tensor by tensor."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sora_jax.core.errors import InputError
from sora_jax.interop.streaming import Entry, write_tensors
from sora_jax.interop.tensors import DTYPES, tensors_in

FP8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


def write(path, tensors: dict[str, tuple[str, np.ndarray]]):
    write_tensors(
        path, [Entry(n, x.shape, kind) for n, (kind, x) in tensors.items()], [x for _, x in tensors.values()]
    )


@pytest.mark.parametrize("kind", FP8)
@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize(
    "scale", [np.float32(0.37), np.float32([0.37]), np.float32([0.5, 2.0, 3.0]), np.float32([[0.5], [2.0], [3.0]])]
)
def test_fp8_weights_are_multiplied_by_their_scale(tmp_path, kind, suffix, scale):
    weight = np.random.default_rng(0).normal(size=(3, 4)).astype(FP8[kind])
    bias = np.ones(3, ml_dtypes.bfloat16)
    write(
        tmp_path / "m.safetensors",
        {
            "a.weight": (kind, weight),
            f"a.{suffix}": ("F32", scale),
            "a.scale_input": ("F32", np.float32([1.0])),
            "a.bias": ("BF16", bias),
            "b.weight": (kind, weight),
            "scaled_fp8": (kind, weight[0, :2]),
        },
    )
    found = tensors_in(tmp_path)
    assert found.keys() == {"a.weight", "a.bias", "b.weight"}
    wanted = weight.astype(np.float32) * scale.reshape(-1, *([1] if scale.size > 1 else []))
    np.testing.assert_array_equal(found["a.weight"][...], wanted)
    np.testing.assert_array_equal(found["a.weight"][1:, :2], wanted[1:, :2])
    np.testing.assert_array_equal(found["b.weight"][...].astype(np.float32), weight.astype(np.float32))


def test_a_scale_for_blocks_is_refused_by_name(tmp_path):
    weight = np.ones((4, 4), ml_dtypes.float8_e4m3fn)
    write(
        tmp_path / "m.safetensors",
        {"a.weight": ("F8_E4M3", weight), "a.weight_scale": ("F32", np.ones((2, 2), np.float32))},
    )
    with pytest.raises(InputError, match=r"'a.weight_scale' has shape \[2, 2\]; only one scale for a weight"):
        tensors_in(tmp_path)


@pytest.mark.parametrize(
    "name, words",
    [("wan-Q4_K_M.gguf", "GGUF's block quantisation is not read"), ("wan.pth", "a pickle can run code")],
)
def test_other_containers_are_refused_by_name(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=words):
            tensors_in(path)


def test_a_type_that_is_not_read_is_named(tmp_path):
    header = json.dumps({"a": {"dtype": "F4", "shape": [2, 2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(InputError) as error:
        tensors_in(tmp_path / "m.safetensors")
    assert "\n" not in str(error.value)


def test_a_file_written_tensor_by_tensor_is_one_of_safetensors(tmp_path):
    draw = np.random.default_rng(0)
    tensors = {
        kind: draw.integers(0, 2, (3, 4)).astype(dtype)
        for kind, dtype in DTYPES.items()
        if not kind.startswith("F8")
    }
    entries = [Entry(kind, x.shape, kind) for kind, x in tensors.items()]
    rows = (row for x in tensors.values() for row in x)  # each tensor in three parts
    write_tensors(tmp_path / "m.safetensors", entries, rows, {"format": "pt"})
    found = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert found.keys() == tensors.keys()
    for kind, x in tensors.items():
        assert found[kind].dtype == x.dtype and np.array_equal(found[kind], x)
        assert np.array_equal(tensors_in(tmp_path)[kind][...], x)
    with pytest.raises(ValueError, match="bytes of data"):
        write_tensors(tmp_path / "short.safetensors", entries, [], None)
    assert not (tmp_path / "short.safetensors").exists()
