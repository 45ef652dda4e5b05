"""The tensors of published weights: one safetensors file, or a folder of several with an index, as one mapping.

Tensors are read when they are indexed, never all at once. fp8 weights come out multiplied by their scales.
"""

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from sora_jax.checkpoint.model_folder import open_tensors
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import as_path, local_file

SAFETENSORS = ".safetensors"
INDEX = ".safetensors.index.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt")
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# Names of the scale beside an fp8 weight `X.weight`, and of tensors that only fp8 arithmetic needs.
SCALES = (".scale_weight", ".weight_scale", ".weight.scale")
FP8_ONLY = (".scale_input", ".input_scale", ".comfy_quant")
FP8_MARKERS = ("scaled_fp8",)


@dataclasses.dataclass(frozen=True)
class TensorInFile:
    """A tensor of a safetensors file, of which only what is indexed is read.

    dtype: as safetensors names it: F32, BF16, F8_E4M3.
    offset: of its first byte in the file.
    """

    path: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    def __getitem__(self, index) -> np.ndarray:
        # Mapped anew for each read: pages of a mapping that stays open would stay in memory.
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, DTYPES[self.dtype])[index]
        # As whole numbers: numpy copies types that are not its own, such as bfloat16, one by one.
        dtype = np.dtype(DTYPES[self.dtype])
        mapped = np.memmap(self.path, f"u{dtype.itemsize}", "r", self.offset, self.shape)
        array = np.array(mapped[index]).view(dtype)
        # Every fp8 number is a bfloat16 number, and bfloat16 can be multiplied.
        return array.astype(ml_dtypes.bfloat16) if self.dtype.startswith("F8") else array


@dataclasses.dataclass(frozen=True)
class ScaledTensor:
    """An fp8 weight times its scale: one number, or one for each row, [rows, 1, ...] float32."""

    tensor: TensorInFile
    scale: np.ndarray
    dtype = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def __getitem__(self, index) -> np.ndarray:
        rows = index[0] if isinstance(index, tuple) and index else index
        per_row = self.scale.shape[:1] not in ((), (1,))
        return self.tensor[index].astype(np.float32) * (self.scale[rows] if per_row else self.scale)


def tensors_in(path) -> dict[str, TensorInFile | ScaledTensor]:
    """The tensors of a .safetensors file or of a folder, by name.

    Raises: InputError if there are none, a file is absent or broken, or all there is are pickles or GGUF files.
    """
    path, found = as_path(path), {}
    for file, names in _files(path).items():
        held = read_header(file)
        for name in held if names is None else names:
            if name not in held:
                raise InputError(f"{file}: tensor {name!r} is not in it, though the index says so")
            found[name] = held[name]
    return without_scales(found)


def read_header(path: pathlib.Path) -> dict[str, TensorInFile]:
    """The tensors that a file's header lists. Raises: InputError if the file is absent or broken."""
    with open_tensors(path):  # checks that the header and the data fit together
        pass
    file_here = local_file(path)
    with file_here.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise InputError(
                f"{path}: tensor {name!r} is {entry['dtype']}; {did_you_mean(entry['dtype'], DTYPES)}"
            )
        start = 8 + length + entry["data_offsets"][0]
        found[name] = TensorInFile(file_here, name, tuple(entry["shape"]), entry["dtype"], start)
    return found


def without_scales(tensors: Mapping[str, TensorInFile]) -> dict[str, TensorInFile | ScaledTensor]:
    """The tensors with each fp8 weight multiplied by its scale, and the scales left out.

    Raises: InputError for a scale that is neither one number nor one for each row.
    """
    found: dict[str, TensorInFile | ScaledTensor] = {}
    for name, tensor in tensors.items():
        if name in FP8_MARKERS or name.endswith((*SCALES, *FP8_ONLY)):
            continue
        found[name] = tensor
        module, _, part = name.rpartition(".")
        scales = [tensors[module + suffix] for suffix in SCALES if module + suffix in tensors]
        if part == "weight" and scales:
            scale = np.asarray(scales[0][...], np.float32)
            rows = tensor.shape[0]
            if scale.size not in (1, rows) or (scale.size == rows != 1 and scale.shape[0] != rows):
                raise InputError(
                    f"{scales[0].path}: {scales[0].name!r} has shape {list(scale.shape)}; only one scale for a "
                    f"weight or one for each of its {rows} rows is read: take the model in fp16 or bf16"
                )
            shape = () if scale.size == 1 else (rows, *[1] * (len(tensor.shape) - 1))
            found[name] = ScaledTensor(tensor, scale.reshape(shape))
    return found


def _files(path: pathlib.Path) -> dict[pathlib.Path, list[str] | None]:
    """The files, and the names of the tensors to take from each; None: all."""
    if path.is_file():
        check_suffix(path)
        return {path: None}
    if not path.is_dir():
        there = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such folder" + (f", {did_you_mean(path.name, there)}" if there else ""))
    indices = sorted(path.glob(f"*{INDEX}"))
    if len(indices) > 1:
        names = ", ".join(index.name for index in indices)
        raise InputError(f"{path}: several indices ({names}); which model is meant? Leave one")
    if indices:
        return _indexed(indices[0])
    if files := sorted(path.glob(f"*{SAFETENSORS}")):
        return dict.fromkeys(files)
    for other in sorted(path.iterdir()):
        if other.suffix in (*PICKLES, ".gguf"):
            check_suffix(other)
    raise InputError(f"{path}: no *{SAFETENSORS} in it")


def check_suffix(path: pathlib.Path):
    """Raise InputError for a file of weights that is not safetensors; says what to take instead."""
    if path.suffix in PICKLES:
        raise InputError(
            f"{path}: a pickle can run code and is never opened; take the model's safetensors, or "
            f"write them: safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'model.safetensors')"
        )
    if path.suffix == ".gguf":
        raise InputError(
            f"{path}: GGUF's block quantisation is not read; take the model's .safetensors (bf16, fp16 or fp8)"
        )
    if path.suffix != SAFETENSORS:
        raise InputError(f"{path}: no {SAFETENSORS} file")


def _indexed(index: pathlib.Path) -> dict[pathlib.Path, list[str]]:
    try:
        where = json.loads(index.read_text())["weight_map"]
        files: dict[pathlib.Path, list[str]] = {}
        for name, file in where.items():
            files.setdefault(index.parent / pathlib.Path(file).name, []).append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: no index of safetensors ({error}); copy it again") from None
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: no such file, but {index.name} names it; copy it too")
    return files
