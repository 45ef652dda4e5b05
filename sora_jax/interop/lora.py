"""Adapters in files: diffusers' and PEFT's names, and those of Wan's own layout, for ours."""

import re
from collections.abc import Mapping

import numpy as np

from sora_jax.config.schema import LoraSettings, TransformerSettings
from sora_jax.core.errors import InputError
from sora_jax.interop.tables import LINEAR, Tensor
from sora_jax.interop.wan import from_original, transformer_table

PREFIX = "transformer."
_PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.", "lora_unet_")
_PARTS = {"lora_down": "lora_A", "lora_up": "lora_B"}


def lora_table(settings: TransformerSettings) -> dict[str, Tensor]:
    """Of every linear layer of a block, as diffusers' `load_lora_weights` takes them."""
    table = {}
    for ours, tensor in transformer_table(settings).items():
        if ours.startswith("blocks.") and ours.endswith(".kernel"):
            layer, name = ours.removesuffix(".kernel"), PREFIX + tensor.name.removesuffix(".weight")
            table[f"{layer}.lora_a"] = Tensor(f"{name}.lora_A.weight", LINEAR)
            # The rank takes the place of the inputs; what is done to the outputs is the same.
            table[f"{layer}.lora_b"] = Tensor(f"{name}.lora_B.weight", tensor.pattern, tensor.sizes)
    return table


def normalised(tensors: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Adapters of any naming by diffusers' names, an alpha multiplied into B.

    Raises: InputError for a tensor that is no part of an adapter.
    """
    found, alphas = {}, {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.+?)\.(?:(lora_A|lora_B|lora_down|lora_up)(?:\.default)?\.weight|alpha)", name)
        if match is None:
            raise InputError(f"{where}: tensor {name!r} is no part of an adapter (lora_A, lora_B, alpha)")
        module, part = match[1], match[2]
        for prefix in _PREFIXES:
            module = module.removeprefix(prefix)
        module = from_original(f"{module}.").removesuffix(".")
        if part is None:
            alphas[module] = float(tensor[...])
        else:
            found[f"{PREFIX}{module}.{_PARTS.get(part, part)}.weight"] = np.asarray(tensor[...], np.float32)
    for module, alpha in alphas.items():
        b, a = (f"{PREFIX}{module}.lora_{part}.weight" for part in "BA")
        if a in found and b in found:
            found[b] = found[b] * (alpha / found[a].shape[0])
    return found


def lora_settings(tensors: Mapping[str, np.ndarray], settings: TransformerSettings, where: str) -> LoraSettings:
    """Rank and targets of adapters by diffusers' names.

    Raises: InputError if they are of another model, or of several ranks.
    """
    layers = {}
    for ours, tensor in lora_table(settings).items():
        if ours.endswith(".lora_a"):
            for block in range(settings.layers):
                layers[tensor.name.format(block)] = ours.removeprefix("blocks.").removesuffix(".lora_a")
    ranks, targets = {}, set()
    for name, tensor in tensors.items():
        if not name.endswith("lora_A.weight"):
            continue
        if name not in layers:
            raise InputError(f"{where}: {name!r} adapts a layer that this model has not")
        ranks[tensor.shape[0]] = name
        targets.add(layers[name])
    if len(ranks) != 1:
        several = ", ".join(f"{rank} in {name}" for rank, name in sorted(ranks.items()))
        raise InputError(f"{where}: one rank for all layers is needed, not {several or 'none'}")
    names = "|".join(re.escape(target) for target in sorted(targets))
    return LoraSettings(rank=next(iter(ranks)), targets=f"^({names})$")
