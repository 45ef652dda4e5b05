"""Folders of safetensors: one file, or several with an index, as one mapping from name to tensor."""

import dataclasses
import json
import pathlib

import numpy as np

from sora_jax.checkpoint.model_folder import open_tensors
from sora_jax.core.errors import InputError, did_you_mean

PICKLES = (".bin", ".pth", ".pt", ".ckpt")
INDEX = ".safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class TensorInFile:
    """A tensor of a file, of which only what is indexed is read.

    The file is opened for each reading: open, its pages would stay in memory long after they were copied.
    """

    path: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors calls it: F32, BF16

    def __getitem__(self, index) -> np.ndarray:
        with open_tensors(self.path) as file:
            return file.get_slice(self.name)[index]


def tensors_in(folder) -> dict[str, TensorInFile]:
    """The tensors of a folder by name.

    Raises: InputError if there are none, a file of the index is absent or broken, or all there is are pickles.
    """
    found = {}
    for path, names in _files(pathlib.Path(folder)).items():
        with open_tensors(path) as file:
            held = set(file.keys())
            for name in held if names is None else names:
                if name not in held:
                    raise InputError(f"{path}: tensor {name!r} is not in it, though the index says so")
                there = file.get_slice(name)
                found[name] = TensorInFile(path, name, tuple(there.get_shape()), there.get_dtype())
    return found


def _files(folder: pathlib.Path) -> dict[pathlib.Path, list[str] | None]:
    """Its files, and which tensors to take of each; None: all."""
    if not folder.is_dir():
        there = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise InputError(f"{folder}: no such folder" + (f", {did_you_mean(folder.name, there)}" if there else ""))
    indices = sorted(folder.glob(f"*{INDEX}"))
    if len(indices) > 1:
        names = ", ".join(path.name for path in indices)
        raise InputError(f"{folder}: several indices ({names}); which model is meant? Leave one")
    if indices:
        return _indexed(indices[0])
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return dict.fromkeys(files)
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES):
        raise InputError(
            f"{folder / pickles[0]}: a pickle can run code and is never opened; take the model's safetensors, or "
            f"write them: safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'model.safetensors')"
        )
    raise InputError(f"{folder}: no *.safetensors in it")


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
