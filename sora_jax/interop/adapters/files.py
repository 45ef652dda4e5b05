"""An adapter's file, in any form that it is shared in: the difference that it makes to each tensor."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from sora_jax.checkpoint.model_folder import open_tensors
from sora_jax.config.load import from_dict
from sora_jax.config.schema import SampleSettings, TransformerSettings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import read_object
from sora_jax.interop.adapters import names
from sora_jax.interop.tables import foreign_shapes
from sora_jax.interop.tensors import SAFETENSORS, tensors_in
from sora_jax.interop.wan.tables import transformer_table
from sora_jax.models.dit import DiT

HEADER = "lora_adapter_metadata"  # diffusers' key in a file's header: a JSON object
CONFIG = "adapter_config.json"  # PEFT's file beside the weights
SAMPLE_HEADER = "sample"  # our key in a file's header: sampling settings, a JSON object
FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
# Names of files that are alike for all adapters: the folder around them is named after the adapter.
UNTOLD_NAMES = ("adapter_model", "pytorch_lora_weights", "high_noise_model", "low_noise_model")
# Settings of adapters that need few steps, by a part of the file's name; the first that is found counts. A larger
# number of steps in a name is that of training.
FEW_STEPS = (
    (r"fusionx", {"steps": 8}),
    (r"fastwan|dmd", {"steps": 3, "shift": 8.0}),
    (r"causvid|lightx2v|lightning|lcm|rcm|distill|few[-_ ]?step", {}),
    (r"(?<!\d)\d[-_ ]?steps?(?![a-z])", {}),
)
FEW_STEP_DEFAULTS = {"steps": 4, "guidance": 1.0, "shift": 5.0, "solver": "euler", "time_grid": "linear"}
FEW_STEP_KEYS = ("steps", "guidance", "guidance_low", "shift", "solver", "time_grid")


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The difference scale * up @ down of one weight; a product is formed only for the rows that are indexed.

    down: [rank, d_in] float32. up: [d_out, rank] float32. shape: of the weight.
    """

    down: np.ndarray
    up: np.ndarray
    scale: float
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        if not isinstance(index, tuple):
            return (np.float32(self.scale) * self.up @ self.down).reshape(self.shape)[index]
        rows, columns = index
        return np.float32(self.scale) * self.up[rows] @ self.down[:, columns]


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Differences by the diffusers names of the tensors that they are added to.

    low_rank: of weights. whole: of any tensor, numpy float32. notes: lines to show, such as what was left out.
    """

    where: str
    low_rank: Mapping[str, LowRank]
    whole: Mapping[str, np.ndarray]
    notes: tuple[str, ...]

    @property
    def differences(self) -> dict:
        """{diffusers' name: array, or LowRank}."""
        both = self.whole.keys() & self.low_rank.keys()
        sums = {name: self.whole[name] + self.low_rank[name][...] for name in both}
        return {**self.whole, **self.low_rank, **sums}


def read_adapter(path: pathlib.Path, settings: TransformerSettings) -> Adapter:
    """The adapter in a .safetensors file, or in a folder as PEFT or diffusers write it.

    Args:
      settings: of the transformer that it is for.
    Raises: InputError if it is absent, of a method that is not read, or of another model.
    """
    file = find_file(path)
    with open_tensors(file) as opened:
        metadata = opened.metadata() or {}
    config = read_config(file, metadata)
    if config.get("use_dora"):
        raise InputError(f"{file}: an adapter of DoRA, which is not read; merge it with the tool that made it")
    parts, text = collect(tensors_in(file), settings, str(file))
    known = foreign_shapes(transformer_table(settings), DiT, settings)
    notes = [f"{file}: {text} tensors of a text encoder are left out"] if text else []
    no_branch = 0
    low_rank, whole = {}, {}
    for layer, held in parts.items():
        scale = scale_of(held, config)
        for name, difference in differences_of(layer, held, scale, str(file)):
            if name not in known:
                if names.in_image_branch(name) and not settings.image_width:
                    no_branch += 1
                    continue
                raise InputError(
                    f"{file}: {held['named']!r} adapts a layer that this model has not; "
                    f"{did_you_mean(name, known)}"
                )
            if isinstance(difference, LowRank):
                low_rank[name] = dataclasses.replace(
                    difference, shape=fitting(difference, known[name], name, file)
                )
            elif difference.shape != known[name] and difference.size != math.prod(known[name]):
                raise InputError(
                    f"{file}: the difference of {name!r} has shape {list(difference.shape)}, the model's tensor "
                    f"{list(known[name])}"
                )
            else:
                whole[name] = difference.reshape(known[name])
    if no_branch:
        notes.append(f"{file}: {no_branch} tensors of an image branch are left out, as the model has none")
    if not low_rank and not whole:
        raise InputError(f"{file}: adapts no layer of this model")
    return Adapter(str(file), low_rank, whole, tuple(notes))


def find_file(path: pathlib.Path) -> pathlib.Path:
    """The file of an adapter that is given as a file or as the folder around it."""
    path = path.expanduser()
    if not path.is_dir():
        if not path.is_file():
            there = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
            raise InputError(f"{path}: no such file" + (f", {did_you_mean(path.name, there)}" if there else ""))
        return path
    files = [path / name for name in FILES if (path / name).is_file()] or sorted(path.glob(f"*{SAFETENSORS}"))
    if not files:
        raise InputError(f"{path}: no adapter in it; known: {', '.join(FILES)}")
    if len(files) > 1 and files[0].name not in FILES:
        raise InputError(
            f"{path}: {len(files)} files; name one, for example {files[0]}, or one for each of two experts: "
            f"--lora=high=FILE --lora=low=FILE"
        )
    return files[0]


def read_config(file: pathlib.Path, metadata: Mapping[str, str]) -> dict:
    """PEFT's configuration of an adapter, from the file's header or the file beside it; empty if there is none."""
    if HEADER in metadata:
        try:
            config = json.loads(metadata[HEADER])
            return {key.removeprefix("transformer."): value for key, value in config.items()}
        except (ValueError, AttributeError):
            raise InputError(f"{file}: its header's {HEADER} is no JSON object; write the file again") from None
    beside = file.with_name(CONFIG)
    return read_object(beside) if beside.is_file() else {}


def collect(tensors: Mapping, settings: TransformerSettings, where: str) -> tuple[dict[str, dict], int]:
    """{layer: {role: array, "named": its name in the file}}, and how many tensors are of a text encoder."""
    parts: dict[str, dict] = {}
    text = 0
    for name, tensor in tensors.items():
        if names.in_text_encoder(name):
            text += 1
            continue
        role = names.role_of(name, settings, where)
        held = parts.setdefault(role.layer, {"named": role.named})
        if role.role in held:
            raise InputError(f"{where}: {name!r} is there twice, under two names; leave one")
        held[role.role] = np.asarray(tensor[...], np.float32)
    return parts, text


def scale_of(held: Mapping, config: Mapping) -> float:
    """The factor of up @ down: alpha / rank, alpha from the layer's own tensor, else from PEFT's configuration."""
    if names.DOWN not in held:
        return 1.0
    rank = held[names.DOWN].shape[0]
    if names.ALPHA in held:
        return float(held[names.ALPHA].reshape(-1)[0]) / rank
    alpha = config.get("lora_alpha")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", held["named"]):
            alpha = value
            break
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def differences_of(layer: str, held: Mapping, scale: float, where: str):
    """Yield (diffusers' name of a tensor, its difference) of a layer's parts."""
    down, up = (held.get(role) for role in (names.DOWN, names.UP))
    if (down is None) != (up is None):
        there, absent = ("lora_A", "lora_B") if up is None else ("lora_B", "lora_A")
        raise InputError(f"{where}: {held['named']!r} has {there} and no {absent}; download the file again")
    if down is None and names.ALPHA in held and not {names.BIAS, names.WHOLE} & held.keys():
        raise InputError(f"{where}: {held['named']!r} has an alpha and no weights; download the file again")
    if down is not None:
        down, up = down.reshape(down.shape[0], -1), up.reshape(up.shape[0], -1)
        if up.shape[1] != down.shape[0]:
            raise InputError(
                f"{where}: {held['named']!r} has rank {down.shape[0]} in lora_A and {up.shape[1]} in lora_B"
            )
        yield names.tensor_of(layer, names.UP), LowRank(down, up, scale, (len(up), down.shape[1]))
    if names.WHOLE in held:
        yield names.tensor_of(layer, names.WHOLE), held[names.WHOLE]
    if names.UP_BIAS in held:
        yield names.tensor_of(layer, names.BIAS), np.float32(scale) * held[names.UP_BIAS]
    if names.BIAS in held:
        yield names.tensor_of(layer, names.BIAS), held[names.BIAS]


def fitting(difference: LowRank, shape: tuple[int, ...], name: str, file) -> tuple[int, ...]:
    """The shape of a weight, if an adapter's difference has as many rows and columns."""
    wanted = (shape[0], math.prod(shape[1:]))
    if difference.shape != wanted:
        raise InputError(
            f"{file}: the adapter of {name!r} is for a weight of shape {list(difference.shape)}, the model's is "
            f"{list(shape)}"
        )
    return shape


def few_step_settings(file: pathlib.Path) -> dict:
    """The sampling settings of an adapter that needs few steps: from its header, else by its name, or by its
    folder's if the file's tells nothing; empty for any other adapter.

    Raises: InputError for a header that holds no such settings.
    """
    with open_tensors(file) as opened:
        metadata = opened.metadata() or {}
    if SAMPLE_HEADER in metadata:
        try:
            found = json.loads(metadata[SAMPLE_HEADER])
            found = {key: found[key] for key in FEW_STEP_KEYS if key in found}
        except (ValueError, TypeError):
            raise InputError(f"{file}: its header's {SAMPLE_HEADER} is no JSON object") from None
        checked = from_dict(SampleSettings, found, f"{file}: the header's {SAMPLE_HEADER}")
        return {key: getattr(checked, key) for key in found}
    name = (file.absolute().parent if file.stem in UNTOLD_NAMES else file).name.lower()
    for pattern, settings in FEW_STEPS:
        if re.search(pattern, name):
            steps = re.search(r"(?<!\d)(\d)[-_ ]?steps?(?![a-z])", name)
            return FEW_STEP_DEFAULTS | settings | ({"steps": int(steps[1])} if steps else {})
    return {}
