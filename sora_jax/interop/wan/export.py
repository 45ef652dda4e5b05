"""A workdir -> a folder of the diffusers pipeline that its model came from."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import rich.console
from flax import traverse_util

from sora_jax.checkpoint.frozen_params import LOW_NOISE
from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.model_folder import SETTINGS, WEIGHTS, load_settings
from sora_jax.checkpoint.restore import abstract_on_mesh, restore_ema
from sora_jax.checkpoint.workdir import RELEASED, find_checkpoint
from sora_jax.config.load import to_json
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import as_path, atomic_write, copy_file, copy_files, read_object
from sora_jax.interop.adapters.weights import EXPERTS, Adapter, adapter_of_run, chosen_adapters, names_of
from sora_jax.interop.streaming import Entry, write_tensors
from sora_jax.interop.tables import Table, blank, to_foreign
from sora_jax.interop.tensors import DTYPES, INDEX, tensors_in
from sora_jax.interop.wan import configs as wan_configs
from sora_jax.interop.wan.published import IMAGE_PARTS, INDEX_FILE, PARTS
from sora_jax.interop.wan.tables import autoencoder_table, transformer_table
from sora_jax.models.video_model import abstract_trained

SHARD_BYTES = 5 * 2**30
WEIGHTS_NAME = "diffusion_pytorch_model"
FROM_NUMPY = {str(np.dtype(kind)): name for name, kind in DTYPES.items()}
PUBLISHED_DTYPES = "dtypes.json"  # in a workdir: the types of the published tensors, to write them back bit by bit


def export_model(source: pathlib.Path, target: pathlib.Path, console: rich.console.Console):
    """Write a workdir's model, adapters added, as diffusers' `from_pretrained` reads it.

    Raises: InputError for a model that diffusers has no place for.
    """
    settings, _ = read_meta(*find_checkpoint(source))
    if not settings.text.weights:
        raise InputError(f"{source}: its text encoder is one of its own, which diffusers has no place for")
    if settings.transformer.predicts != "velocity":
        raise InputError(f"{source}: its transformer predicts data, and diffusers' predict velocity")
    parts = [(source, "transformer", EXPERTS[0])]
    if settings.flow.time_min:
        parts.append((source / LOW_NOISE, "transformer_2", EXPERTS[1]))
    for workdir, name, expert in parts:
        part_settings, params, adapters = stored_params(workdir, expert)
        config = wan_configs.transformer_config(part_settings.transformer)
        table, dtypes = transformer_table(part_settings.transformer), read_dtypes(workdir).get("transformer", {})
        write_weights(target / name, table, of_transformer(params), config, dtypes, console, adapters)
    folder = source / "autoencoder"
    autoencoder = load_settings(folder, AutoencoderSettings)
    config, dtypes = wan_configs.autoencoder_config(autoencoder), read_dtypes(source).get("vae", {})
    pixels = tensors_in(folder / WEIGHTS)
    write_weights(target / "vae", autoencoder_table(autoencoder), pixels, config, dtypes, console)
    text = as_path(settings.text.weights)
    for part in [*PARTS, *IMAGE_PARTS] if settings.image.weights else PARTS:
        copy_files(text.parent / part, target / part)
    copy_file(text.parent / INDEX_FILE, target / INDEX_FILE)
    name = read_object(target / INDEX_FILE).get("_class_name", "DiffusionPipeline")
    console.print(f"{target}: for diffusers' {name}.from_pretrained")


class StoredLeaf:
    """A parameter in a checkpoint, restored when it is asked for."""

    def __init__(self, folder: pathlib.Path, step: int, path: tuple[str, ...], abstract: jax.ShapeDtypeStruct):
        self.shape, self.dtype, self._at = abstract.shape, abstract.dtype, (folder, step, path, abstract)

    def load(self) -> np.ndarray:
        folder, step, path, abstract = self._at
        restored = restore_ema(folder, step, traverse_util.unflatten_dict({path: abstract}))
        return jax.device_get(traverse_util.flatten_dict(restored)[path])


def stored_params(workdir: pathlib.Path, expert: str) -> tuple[Settings, dict, list[tuple[Adapter, float]]]:
    """A workdir's settings, its parameters by our dotted names, none of them read yet, and the adapters to add."""
    folder, step = find_checkpoint(workdir)
    settings, _ = read_meta(folder, step)
    adapters = chosen_adapters(settings.lora.base, settings.transformer, expert)
    if settings.lora.rank:
        adapters.append((adapter_of_run(workdir), 1.0))
        _, params, below = stored_params(as_path(settings.train.init_from), expert)
        return settings, params, [*below, *adapters]
    if folder.name == RELEASED:
        return settings, tensors_in(folder / WEIGHTS), adapters
    abstract = traverse_util.flatten_dict(abstract_on_mesh(abstract_trained(settings)))
    return (
        settings,
        {".".join(path): StoredLeaf(folder, step, path, leaf) for path, leaf in abstract.items()},
        adapters,
    )


def of_transformer(params: Mapping) -> dict:
    """The transformer's parameters among a model's, by their names in it."""
    prefix = "transformer."
    return {name.removeprefix(prefix): x for name, x in params.items() if name.startswith(prefix)}


def read_dtypes(workdir: pathlib.Path) -> dict[str, dict[str, str]]:
    """Types of the tensors as they were published; empty if they were not, and are written in float32."""
    path = workdir / PUBLISHED_DTYPES
    return json.loads(path.read_text()) if path.is_file() else {}


def load(leaf):
    """What numpy can index of a parameter."""
    return leaf.load() if isinstance(leaf, StoredLeaf) else leaf


def write_weights(
    folder: pathlib.Path,
    table: Table,
    params: Mapping,
    config: dict,
    dtypes: Mapping[str, str],
    console: rich.console.Console,
    adapters=(),
):
    """Write parameters as diffusers' tensors, in files of at most SHARD_BYTES, with an index if there are several.

    Args:
      dtypes: {diffusers' name: type}; float32 where it says nothing.
      adapters: (adapter, strength), added to the tensors.
    """
    params = {name: params[name] for name in sorted(params)}
    entries = [
        Entry(name, array.shape, dtypes.get(name, "F32")) for name, array in to_foreign(table, params, blank)
    ]
    differences = [(adapter.differences, strength) for adapter, strength in adapters]

    def tensors():
        for entry, (name, array) in zip(entries, to_foreign(table, params, load), strict=True):
            for difference, strength in differences:
                if name in difference:
                    array = array.astype(np.float32) + np.float32(strength) * difference[name][...]
            bar.advance(task)
            yield np.asarray(array, DTYPES[entry.dtype])

    folder.mkdir(parents=True, exist_ok=True)
    shards = in_shards(entries)
    with progress_bar(console) as bar:
        task, parts = bar.add_task(f"writing {folder.name}", total=len(entries), numbers=""), tensors()
        where = {}
        for number, shard in enumerate(shards):
            suffix = "" if len(shards) == 1 else f"-{number + 1:05}-of-{len(shards):05}"
            file = f"{WEIGHTS_NAME}{suffix}.safetensors"
            write_tensors(folder / file, shard, (next(parts) for _ in shard), {"format": "pt"})
            where |= {entry.name: file for entry in shard}
    total = sum(entry.bytes for entry in entries)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    for name, content in ((f"{WEIGHTS_NAME}{INDEX}", index if len(shards) > 1 else None), ("config.json", config)):
        if content is not None:
            with atomic_write(folder / name) as temporary:
                temporary.write_text(json.dumps(content, indent=2))


def write_merged(source: pathlib.Path, target: pathlib.Path, adapters):
    """A workdir's model with adapters added, in float32 where they change it -> a released model in `target`.

    Args:
      adapters: (adapter, strength).
    """
    settings, params, below = stored_params(source, EXPERTS[0])
    lora = dataclasses.replace(settings.lora, rank=0, base=())
    up = {
        name: dataclasses.replace(part, weights=os.path.relpath(part.weights, target.resolve()))
        for name in ("text", "image")
        if (part := getattr(settings, name)).weights
    }
    settings = dataclasses.replace(settings, lora=lora, **up)
    table = transformer_table(settings.transformer)
    differences = [(adapter.differences, strength) for adapter, strength in [*below, *adapters]]
    changed = {
        f"transformer.{ours}"
        for ours, tensor in table.items()
        if any(name in found for name in names_of(tensor, settings.transformer.layers) for found, _ in differences)
    }
    entries = [
        Entry(name, leaf.shape, "F32" if name in changed else FROM_NUMPY[str(np.dtype(dtype_of(leaf)))])
        for name, leaf in params.items()
    ]

    def parts():
        for entry, (name, leaf) in zip(entries, params.items(), strict=True):
            array, tensor = load(leaf), table.get(name.removeprefix("transformer."))
            if name not in changed:
                yield np.asarray(array[...], DTYPES[entry.dtype])
                continue
            stacked = "{}" in tensor.name
            for block in range(leaf.shape[0]) if stacked else [...]:
                part = np.asarray(array[block], np.float32)
                for found, strength in differences:
                    if (foreign := tensor.name.format(block)) in found:
                        part = part + np.float32(strength) * tensor.read(
                            found[foreign], (slice(None),) * part.ndim
                        )
                yield part

    copy_files(source / "autoencoder", target / "autoencoder")
    copy_file(source / "tokenizer.model", target / "tokenizer.model")
    write_tensors(target / RELEASED / WEIGHTS, entries, parts())
    for path in (target / SETTINGS, target / RELEASED / SETTINGS):
        path.write_text(to_json(settings))


def dtype_of(leaf) -> np.dtype:
    """numpy's type of a parameter in a checkpoint or in a file."""
    return DTYPES[leaf.dtype] if isinstance(leaf.dtype, str) else leaf.dtype


def in_shards(entries: list[Entry]) -> list[list[Entry]]:
    """The entries in order, in groups of at most SHARD_BYTES."""
    shards, size = [[]], 0
    for entry in entries:
        if shards[-1] and size + entry.bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.bytes
    return shards
