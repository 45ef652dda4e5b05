"""The names under which adapters are shared: each tensor's layer, by diffusers' name, and its role in the adapter.

The forms are listed in docs/reference/adapters.md.
"""

import dataclasses
import functools
import re

from sora_jax.config.schema import TransformerSettings
from sora_jax.core.errors import InputError
from sora_jax.interop.wan.tables import from_original

DOWN, UP, UP_BIAS, ALPHA, BIAS, WHOLE = "down", "up", "up_bias", "alpha", "bias", "whole"
_ROLES = {"lora_A": DOWN, "lora_down": DOWN, "lora.down": DOWN, "lora_B": UP, "lora_up": UP, "lora.up": UP}
# Prefixes of a transformer's tensors; any number of them, one after the other.
_PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "model.", "dit.", "pipe.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")  # behind these, dots are written as underscores
_TEXT_ENCODER = ("text_encoder", "lora_te", "text_encoders.", "te1.", "te.", "cond_stage_model.")
# Methods that are not read, by what marks their tensors.
REFUSED = {
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    "lora_magnitude_vector": "DoRA",
    "dora_scale": "DoRA",
    "lora_mid": "LoCon with a Tucker factor",
    "reshape_weight": "an adapter that changes the shape of a weight",
    "glora_": "GLoRA",
    "vera_": "VeRA",
}
_ORIGINAL_BLOCK = (
    *(f"self_attn.{part}" for part in ("q", "k", "v", "o", "norm_q", "norm_k")),
    *(f"cross_attn.{part}" for part in ("q", "k", "v", "o", "k_img", "v_img", "norm_q", "norm_k", "norm_k_img")),
    *("ffn.0", "ffn.2", "norm3", "modulation"),
)
_ORIGINAL = (
    *("patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"),
    *("time_projection.1", "head.head", "head.modulation", "head"),
    *(f"img_emb.proj.{n}" for n in (0, 1, 3, 4)),
)
_IMAGE_BRANCH = re.compile(r"add_[kv]_proj|norm_added_k|image_embedder")


@dataclasses.dataclass(frozen=True)
class Role:
    """A tensor of an adapter.

    layer: by diffusers' name, such as "blocks.0.attn1.to_q". named: as the file names it, without prefixes.
    """

    layer: str
    named: str
    role: str


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name is a part of an adapter of any method, read here or not."""
    return re.search(r"\.(lora[._]|alpha$|diff(_[bm])?$)|lokr_|hada_|oft_|dora_scale", name) is not None


def in_text_encoder(name: str) -> bool:
    """Whether a tensor adapts the text encoder, which no adapter here changes."""
    return name.removeprefix(_PREFIXES[0]).startswith(_TEXT_ENCODER)


def in_image_branch(name: str) -> bool:
    """Whether a tensor, by diffusers' name, belongs to Wan 2.1's image branch, which other models do without."""
    return _IMAGE_BRANCH.search(name) is not None


def role_of(name: str, settings: TransformerSettings, where: str) -> Role:
    """What a tensor of an adapter is.

    Args:
      name: as the file has it. where: the file, for errors.
    Raises: InputError for a tensor of another method, named, or of none.
    """
    for mark, method in REFUSED.items():
        if mark in name:
            raise InputError(
                f"{where}: tensor {name!r} is of {method}, which is not read; merge the adapter into its model "
                f"with the tool that made it, or extract a LoRA from it"
            )
    # Between part and "weight" may stand PEFT's name of the adapter, mostly "default".
    parts = "|".join(map(re.escape, _ROLES))
    if match := re.fullmatch(rf"(.+?)\.({parts})(?:\.[\w-]+)?\.(weight|bias)", name):
        role = _ROLES[match[2]]
        if match[3] == "bias":
            role = UP_BIAS if role == UP else ""
    elif match := re.fullmatch(r"(.+)\.(alpha|diff|diff_b|diff_m)", name):
        role = {"alpha": ALPHA, "diff_b": BIAS}.get(match[2], WHOLE)
    if not match or not role:
        raise InputError(
            f"{where}: tensor {name!r} is no part of an adapter (lora_A, lora_down, alpha, diff, ...)"
        )
    named = match[1]
    if match[2] == "diff_m":  # lightx2v: of the modulation beside a block's layers
        named += ".modulation"
    return Role(layer_of(named, settings), unprefixed(named), role)


def unprefixed(named: str) -> str:
    """A layer's name without what stands before the transformer's own names."""
    while prefix := next((p for p in (*_PREFIXES, *_FLAT_PREFIXES) if named.startswith(p)), ""):
        named = named.removeprefix(prefix)
    return named.lstrip("_")


def layer_of(named: str, settings: TransformerSettings) -> str:
    """diffusers' name of a layer, from any file's; a name of no layer of this model comes back as it is."""
    name = unprefixed(named)
    if any(named.startswith(p) for p in _FLAT_PREFIXES):
        return _flat_names(settings.layers).get(name, name)
    return _dotted(name)


def _dotted(name: str) -> str:
    return from_original(f"{name}.").removesuffix(".") if not name.endswith("modulation") else from_original(name)


@functools.cache
def _flat_names(layers: int) -> dict[str, str]:
    """{a layer's name with underscores for dots, original or diffusers': diffusers' name}."""
    names = [*_ORIGINAL, *(f"blocks.{n}.{part}" for n in range(layers) for part in _ORIGINAL_BLOCK)]
    found = {}
    for original in names:
        theirs = _dotted(original)
        found |= {original.replace(".", "_"): theirs, theirs.replace(".", "_"): theirs}
    return found


def tensor_of(layer: str, role: str) -> str:
    """diffusers' name of the tensor that a part of an adapter changes."""
    if role in (BIAS, UP_BIAS):
        return f"{layer}.bias"
    return layer if layer.endswith("scale_shift_table") else f"{layer}.weight"
