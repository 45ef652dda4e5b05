"""LPIPS weights by the names of the published package."""

import pathlib

import jax
import numpy as np

from sora_jax.checkpoint.model_folder import open_tensors
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.models.autoencoder.lpips import STAGES, lpips_shapes


def load_lpips(path: str | pathlib.Path) -> dict:
    """Parameters of `models.autoencoder.lpips`, numpy float32.

    Args:
      path: safetensors file of `lpips.LPIPS(net="vgg")`, by the names of its `state_dict()`.
    Raises: InputError if it is absent or broken, or a tensor is missing, extra or of another shape.
    """
    names = _names()
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    used = set(jax.tree.leaves(names))
    for name in sorted(tensors):
        # The package holds its last layers twice; the shift and scale of pixels are constants.
        if name not in used and not name.startswith(("lins.", "scaling_layer.")):
            raise InputError(f"{path}: tensor {name!r} is not of LPIPS with VGG-16; {did_you_mean(name, used)}")

    def take(name, shape):
        if name not in tensors:
            raise InputError(f"{path}: tensor {name!r} is missing; {did_you_mean(name, tensors)}")
        tensor = np.asarray(tensors[name], np.float32)
        turned = tensor.transpose(2, 3, 1, 0) if len(shape) == 4 else tensor
        if turned.shape != shape and turned.shape != (1, *shape, 1, 1):
            raise InputError(f"{path}: tensor {name!r} has shape {list(tensor.shape)}, which does not fit")
        return turned.reshape(shape)

    return jax.tree.map(take, names, lpips_shapes(), is_leaf=lambda x: isinstance(x, str))


def _names() -> dict:
    """The name of each parameter, in the tree of `lpips_shapes`; a layer's number is its place in VGG-16."""
    stages, place = [], 0
    for number, widths in enumerate(STAGES):
        convs = []
        for _ in widths:
            layer = f"net.slice{number + 1}.{place}"
            convs.append({"kernel": f"{layer}.weight", "bias": f"{layer}.bias"})
            place += 2  # a ReLU follows
        place += 1  # then a maximum of each 2x2
        stages.append({"convs": convs, "weights": f"lin{number}.model.1.weight"})
    return {"stages": stages}
