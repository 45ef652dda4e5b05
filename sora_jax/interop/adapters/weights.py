"""Adapters: added to a model's weights, and converted from and to the files in which they are shared."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from flax import traverse_util

from sora_jax.checkpoint.manager import save_weights
from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.model_folder import named
from sora_jax.checkpoint.restore import restore_trained
from sora_jax.checkpoint.workdir import CHECKPOINTS, find_checkpoint
from sora_jax.config.load import to_json
from sora_jax.config.schema import LoraSettings, Settings, TransformerSettings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, copy_files
from sora_jax.interop.adapters.files import Adapter, LowRank, few_step_settings, find_file, read_adapter
from sora_jax.interop.streaming import Entry, write_tensors
from sora_jax.interop.tables import LINEAR, Tensor, load_leaf, load_tensors, to_foreign
from sora_jax.interop.wan.tables import transformer_table
from sora_jax.models.video_model import abstract_trained

PREFIX = "transformer."  # of diffusers' names in an adapter's file
EXPERTS = ("high", "low")


@dataclasses.dataclass(frozen=True)
class AdapterChoice:
    """An adapter as it is asked for: PATH, PATH:STRENGTH, high=PATH or low=PATH:STRENGTH.

    experts: which of a model's two experts it is added to; a model with one transformer is "high".
    """

    path: pathlib.Path
    strength: float
    experts: tuple[str, ...]


def parse_choice(text: str) -> AdapterChoice:
    """ "low=FILE:0.8" -> the file, the strength 0.8, the expert. Raises: InputError if it is no such text."""
    expert, equals, path = text.partition("=")
    experts = (expert,) if equals and expert in EXPERTS else EXPERTS
    path = path if experts != EXPERTS else text
    head, colon, tail = path.rpartition(":")
    strength = 1.0
    if colon:
        with contextlib.suppress(ValueError):  # else the colon belongs to the path, as in gs://
            path, strength = (head, float(tail))
    if not path or not np.isfinite(strength):
        raise InputError(f"--lora={text}: is not PATH or PATH:STRENGTH, such as style.safetensors:0.8")
    return AdapterChoice(as_path(path), strength, experts)


def absolute_choice(text: str) -> str:
    """The same choice with an absolute path. Raises: InputError if there is no such adapter."""
    choice = parse_choice(text)
    if not (choice.path / CHECKPOINTS).is_dir():
        find_file(choice.path)
    expert = f"{choice.experts[0]}=" if choice.experts != EXPERTS else ""
    return f"{expert}{choice.path.absolute()}:{choice.strength:g}"


def read_choice(choice: AdapterChoice, settings: TransformerSettings) -> Adapter:
    """The adapter that is asked for: of a file, or of the workdir of a run that trained one."""
    if (choice.path / CHECKPOINTS).is_dir():
        return adapter_of_run(choice.path)
    return read_adapter(choice.path, settings)


def add_adapter(transformer: dict, settings: TransformerSettings, adapter: Adapter, strength: float = 1.0) -> dict:
    """A transformer's parameters with an adapter added to them: W + strength * alpha / rank * up @ down.

    Args:
      transformer: parameters on the current mesh, of any type; they keep it.
      strength: -1 takes out what 1 added.
    """
    table, differences = transformer_table(settings), adapter.differences
    flat = traverse_util.flatten_dict(transformer, sep=".")

    @jax.jit
    def add(leaf, difference):
        return (leaf.astype(jnp.float32) + strength * difference).astype(leaf.dtype)

    for name, leaf in flat.items():
        foreign = names_of(table.get(name), settings.layers)
        if not any(other in differences for other in foreign):
            continue
        shape = next(differences[other].shape for other in foreign if other in differences)
        zero = np.broadcast_to(np.float32(0), shape)
        tensors = {other: differences.get(other, zero) for other in foreign}
        abstract = jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=jax.typeof(leaf).sharding)
        flat[name] = add(leaf, load_leaf(tensors, table[name], abstract, jnp.float32))
    return traverse_util.unflatten_dict(flat, sep=".")


def names_of(tensor: Tensor | None, layers: int) -> list[str]:
    """diffusers' names of the tensors that one of ours is made of."""
    if tensor is None:
        return []
    return [tensor.name.format(block) for block in range(layers)] if "{}" in tensor.name else [tensor.name]


def adapter_table(settings: TransformerSettings) -> dict[str, Tensor]:
    """Names and layouts of the adapters of every linear layer of a block, as diffusers' `load_lora_weights` takes
    them.
    """
    table = {}
    for ours, tensor in transformer_table(settings).items():
        if ours.startswith("blocks.") and ours.endswith(".kernel"):
            layer, name = ours.removesuffix(".kernel"), PREFIX + tensor.name.removesuffix(".weight")
            table[f"{layer}.lora_a"] = Tensor(f"{name}.lora_A.weight", LINEAR)
            # The rank takes the place of the inputs; the outputs are laid out as the weight's.
            table[f"{layer}.lora_b"] = Tensor(f"{name}.lora_B.weight", tensor.pattern, tensor.sizes)
    return table


def adapter_tensors(adapters: dict, settings: Settings) -> dict[str, np.ndarray]:
    """A transformer's adapters by diffusers' names, alpha / rank multiplied into B: there, alpha is the rank."""
    scale = settings.lora.scale
    params = {name: x * scale if name.endswith("lora_b") else x for name, x in named(adapters)}
    table = adapter_table(settings.transformer)
    return {name: np.ascontiguousarray(x) for name, x in to_foreign(table, params)}


def adapter_of_run(workdir: pathlib.Path) -> Adapter:
    """The adapter that a run has trained. Raises: InputError if it has none."""
    folder, step = find_checkpoint(workdir)
    settings, _ = read_meta(folder, step)
    if not settings.lora.rank:
        raise InputError(f"{workdir}: has no adapters; name a run that was trained with config.lora.rank")
    return low_rank_adapter(restore_trained(folder, step, settings)["transformer"], settings, str(workdir))


def low_rank_adapter(adapters: dict, settings: Settings, where: str) -> Adapter:
    """Adapters in our layout as differences of diffusers' tensors."""
    tensors = adapter_tensors(jax.device_get(adapters), settings)
    low_rank = {}
    for name, down in tensors.items():
        if name.endswith("lora_A.weight"):
            up = tensors[name.replace("lora_A", "lora_B")]
            weight = name.removeprefix(PREFIX).replace("lora_A.weight", "weight")
            low_rank[weight] = LowRank(down, up, 1.0, (len(up), down.shape[1]))
    return Adapter(where, low_rank, {}, ())


def export_adapter(source: pathlib.Path, target: pathlib.Path, console: rich.console.Console):
    """The adapters of a workdir -> a safetensors file for diffusers' `load_lora_weights`."""
    folder, step = find_checkpoint(source)
    settings, _ = read_meta(folder, step)
    if not settings.lora.rank:
        raise InputError(f"{source}: has no adapters; to write its whole model, name a folder with --to")
    tensors = adapter_tensors(restore_trained(folder, step, settings)["transformer"], settings)
    write_adapter(target, tensors)
    console.print(f"{target}: {len(tensors)} tensors, for diffusers' load_lora_weights")


def write_adapter(target: pathlib.Path, tensors: Mapping[str, np.ndarray]):
    """Write an adapter's tensors, by diffusers' names, with the header that diffusers and PEFT read."""
    modules = sorted({name.removeprefix(PREFIX).split(".lora_")[0] for name in tensors})
    ranks = {name: x.shape[0] for name, x in tensors.items() if name.endswith("lora_A.weight")}
    rank = max(ranks.values())
    described = {"r": rank, "lora_alpha": rank, "target_modules": modules, "peft_type": "LORA"}
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"{PREFIX}{key}": value for key, value in described.items()}),
    }
    entries = [Entry(name, x.shape, "F32") for name, x in tensors.items()]
    write_tensors(target, entries, (np.asarray(x, np.float32) for x in tensors.values()), metadata)


def trainable(adapter: Adapter, settings: TransformerSettings) -> bool:
    """Whether an adapter is low-rank throughout, and of layers that a run can train adapters of."""
    layers = {name.split(".lora_")[0] for name in _block_names(settings)}
    weights = {PREFIX + name.removesuffix(".weight") for name in adapter.low_rank}
    return not adapter.whole and weights <= layers


def _block_names(settings: TransformerSettings) -> set[str]:
    return {
        tensor.name.format(block)
        for ours, tensor in adapter_table(settings).items()
        for block in range(settings.layers)
        if ours.endswith("lora_a")
    }


def import_adapter(adapter: Adapter, folder: pathlib.Path, target: pathlib.Path, base: pathlib.Path):
    """Write a low-rank adapter as a workdir that samples with it, and that runs can begin with.

    Layers of a lower rank than the others, and layers left out, are filled up with zeros.

    Args:
      folder: to write into. target: where it will be; the path to `base` is stored relative to it.
    """
    settings, _ = read_meta(*find_checkpoint(base))
    lora, tensors = uniform_rank(adapter, settings.transformer)
    path = os.path.relpath(base.resolve(), target.resolve())
    train = dataclasses.replace(settings.train, init_from=path)
    settings = dataclasses.replace(settings, lora=lora, train=train)
    abstract = abstract_trained(settings)["transformer"]
    adapters = load_tensors(tensors, adapter_table(settings.transformer), abstract, where=adapter.where)
    copy_files(base / "autoencoder", folder / "autoencoder")
    (folder / "tokenizer.model").write_bytes((base / "tokenizer.model").read_bytes())
    (folder / "settings.json").write_text(to_json(settings))
    save_weights(folder, {"transformer": adapters}, settings)


def uniform_rank(adapter: Adapter, settings: TransformerSettings) -> tuple[LoraSettings, dict[str, np.ndarray]]:
    """Rank and layers of an adapter, and its tensors by diffusers' names, all of one rank, alpha / rank in B."""
    rank = max(difference.rank for difference in adapter.low_rank.values())
    targets, tensors = set(), {}
    table = adapter_table(settings)
    layers = {ours.removeprefix("blocks.").removesuffix(".lora_a") for ours in table if ours.endswith("lora_a")}
    for layer in layers:
        a, b = (table[f"blocks.{layer}.lora_{part}"].name for part in "ab")
        found = {
            block: adapter.low_rank.get(
                f"{a.format(block).removeprefix(PREFIX).removesuffix('.lora_A.weight')}.weight"
            )
            for block in range(settings.layers)
        }
        there = [x for x in found.values() if x is not None]
        if not there:
            continue
        targets.add(layer)
        d_out, d_in = there[0].shape
        for block, x in found.items():
            down, up = np.zeros((rank, d_in), np.float32), np.zeros((d_out, rank), np.float32)
            if x is not None:
                down[: x.rank], up[:, : x.rank] = x.down, np.float32(x.scale) * x.up
            tensors |= {a.format(block): down, b.format(block): up}
    names = "|".join(sorted(target.replace(".", r"\.") for target in targets))
    return LoraSettings(rank=rank, targets=f"^({names})$"), tensors


def brought_settings(texts: Sequence[str]) -> tuple[dict, list[str]]:
    """The sampling settings that adapters bring, those of the fewest steps; and notes for the user."""
    found, notes = [], []
    for choice in map(parse_choice, texts):
        if (choice.path / CHECKPOINTS).is_dir():
            continue
        file = find_file(choice.path)
        if settings := few_step_settings(file):
            found.append(settings)
        else:
            notes.append(
                f"note: {file} names no sampling settings; if it was made for few steps, pass "
                f"them, such as --steps=4 --guidance=1"
            )
    return min(found, key=lambda settings: settings.get("steps", math.inf), default={}), notes


def chosen_adapters(
    texts: Sequence[str], settings: TransformerSettings, expert: str
) -> list[tuple[Adapter, float]]:
    """(adapter, strength) of a list such as ("a.safetensors:0.8", "low=b.safetensors"), for one expert."""
    choices = [parse_choice(text) for text in texts]
    return [(read_choice(c, settings), c.strength) for c in choices if expert in c.experts]
