"""Models on disk: a folder with model.safetensors (tensors named by attribute) and settings.json.

Only safetensors are read: a pickle can run code. Every tensor is checked against the model that the settings
describe before any is used.
"""

import hashlib
import os
import pathlib
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.experimental import multihost_utils

from sora_jax.checkpoint.renamed import present_name
from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.load import from_json, to_json
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import as_path, atomic_write, local_file, read_object
from sora_jax.models.layers.params import abstract_params

WEIGHTS = "model.safetensors"
SETTINGS = "settings.json"


def save_model(folder, module_class, settings, params: dict, *, dtype=None, metadata=None) -> None:
    """Write a model; a failed write leaves the old files.

    Args:
      folder: made if it is absent.
      module_class: takes (settings, *, rngs); the class of these params.
      params: nested dict, as from `init_params`.
      dtype: cast to it, e.g. "bfloat16"; None: as they are.
      metadata: further {name: text} for the file of the weights.
    Raises: InputError if params are not those of the model, or it can't be written, e.g. because the disk is full.
    """
    folder = as_path(folder)
    tensors = dict(named(params))
    _check_shapes(
        "params", {name: array.shape for name, array in tensors.items()}, _expected(module_class, settings)
    )
    # All hosts gather, the first one writes.
    tensors = {name: multihost_utils.process_allgather(array, tiled=True) for name, array in tensors.items()}
    if dtype is not None:
        tensors = {name: array.astype(jnp.dtype(dtype)) for name, array in tensors.items()}

    def write():
        with atomic_write(folder / WEIGHTS) as path:
            _write_tensors(tensors, path, metadata)
        with atomic_write(folder / SETTINGS) as path:
            path.write_text(to_json(settings) + "\n")

    run_on_first_host(write)


def load_model(folder, module_class, settings_class):
    """Read a model that `save_model` wrote.

    Returns: (settings, params); params float32, on the current mesh; each device reads its own part.
    Raises: InputError if a file is absent, broken, or does not fit the settings; it names the file and tensor.
    """
    settings = load_settings(folder, settings_class)
    path = as_path(folder) / WEIGHTS
    expected = _expected(module_class, settings)
    with open_tensors(path) as file:
        tensors = {present_name(name): file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        _check_shapes(path, {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}, expected)
        arrays = [_place(tensors[name], shape) for name, shape in expected.items()]
    abstract = abstract_params(module_class, settings)
    return settings, jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def load_params(path: pathlib.Path, abstract: dict) -> dict:
    """Some of the parameters in a file, in the shardings and types of `abstract`; each chip reads its own part.

    Raises: InputError if the file is absent or broken, or has one of them not, or in another shape.
    """
    expected = dict(named(abstract))
    with open_tensors(path) as file:
        held = set(file.keys())
        found = {name: tuple(file.get_slice(name).get_shape()) for name in expected if name in held}
        _check_shapes(path, found, expected)
        arrays = [_place(file.get_slice(name), leaf) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def load_settings(folder, settings_class):
    """The settings of a model on disk. Raises: InputError if they are absent or no settings of this class."""
    path = _existing(folder, SETTINGS)
    return from_json(settings_class, read_object(path), str(path))


def autoencoder_folder(folder) -> pathlib.Path:
    """The autoencoder's folder: the given one, or `autoencoder/` in a given workdir."""
    inside = as_path(folder) / "autoencoder"
    return inside if inside.is_dir() else as_path(folder)


def model_hash(folder) -> str:
    """A hash of the weights and settings of a model on disk, 16 hex digits."""
    digest = hashlib.sha256()
    for name in (SETTINGS, WEIGHTS):
        with _existing(folder, name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def open_tensors(path):
    """An open safetensors file, to be used in a `with`. Raises: InputError if it is absent or broken."""
    path = _existing(as_path(path).parent, as_path(path).name)
    try:
        return safetensors.safe_open(local_file(path), framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        reason = "empty" if path.stat().st_size == 0 else str(error)
        raise InputError(f"{path}: no readable safetensors file ({reason}); truncated? copy it again") from None


def named(params: dict) -> Iterator[tuple[str, jax.Array]]:
    """Every leaf with its dotted name, e.g. "decoder.up_blocks.0.blocks.1.conv1.kernel"."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield ".".join(str(key.key) for key in path), leaf


def _expected(module_class, settings) -> dict[str, jax.ShapeDtypeStruct]:
    return dict(named(abstract_params(module_class, settings)))


def _check_shapes(where, found: dict[str, tuple], expected: dict[str, jax.ShapeDtypeStruct]) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        hint = f"; it has {extra[0]!r}, which the model has not" if extra else ""
        raise InputError(f"{where}: tensor {missing[0]!r}{more} missing{hint}")
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        hint = did_you_mean(extra[0], expected)
        raise InputError(f"{where}: tensor {extra[0]!r}{more} is not in the model; {hint}")
    for name, shape in found.items():
        if tuple(shape) != expected[name].shape:
            wanted = list(expected[name].shape)
            raise InputError(f"{where}: tensor {name!r} has shape {list(shape)}, the settings ask for {wanted}")


def _place(tensor, expected: jax.ShapeDtypeStruct) -> jax.Array:
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jnp.asarray(tensor[...], expected.dtype)
    sharding = jax.NamedSharding(mesh, expected.sharding.spec)
    return jax.make_array_from_callback(
        expected.shape, sharding, lambda index: tensor[index].astype(expected.dtype)
    )


def _existing(folder, name: str) -> pathlib.Path:
    folder = as_path(folder)
    path = folder / name
    if path.is_file():
        return path
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a model is a folder with {WEIGHTS} and {SETTINGS}")
    there = sorted(item.name for item in folder.iterdir())
    hint = did_you_mean(name, there) if there else "the folder is empty"
    raise InputError(f"{path}: no such file; {hint}")


def _write_tensors(tensors: dict[str, np.ndarray], path: pathlib.Path, metadata: dict[str, str] | None) -> None:
    try:
        safetensors.numpy.save_file(tensors, path, metadata)
    except safetensors.SafetensorError as error:
        # The system's error number is only in the text.
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
