"""The command `convert`: published Wan weights into a workdir, for `sample` and `train`, and a workdir out again.

The transformer and the autoencoder become safetensors by our names, written tensor by tensor in the types of the
published ones. The encoders stay in the files that they were published in, which are copied as they are.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import rich.console

from sora_jax.checkpoint.frozen_params import LOW_NOISE
from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.model_folder import SETTINGS, WEIGHTS, named
from sora_jax.checkpoint.workdir import CHECKPOINTS, RELEASED, find_checkpoint
from sora_jax.config.load import to_json
from sora_jax.config.schema import MeshSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import as_path, copy_file, copy_files, explain_os_errors, move_folder, remove_folder
from sora_jax.interop.adapters.files import CONFIG, FILES, find_file, read_adapter
from sora_jax.interop.adapters.names import is_adapter
from sora_jax.interop.adapters.weights import export_adapter, import_adapter, trainable
from sora_jax.interop.hub import fetch
from sora_jax.interop.streaming import Entry, write_tensors
from sora_jax.interop.tables import Table, leaf_parts, stored_dtype
from sora_jax.interop.tensors import DTYPES, SAFETENSORS, tensors_in
from sora_jax.interop.wan.export import PUBLISHED_DTYPES, export_model, write_merged
from sora_jax.interop.wan.published import INDEX_FILE, Expert, Model, describe, read_model
from sora_jax.interop.wan.tables import autoencoder_table, transformer_table
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.dit import DiT
from sora_jax.models.layers.params import abstract_params


def convert(
    source: pathlib.Path,
    target: pathlib.Path | None,
    *,
    rest: pathlib.Path | None,
    base: pathlib.Path | None,
    check: bool,
    console: rich.console.Console,
):
    """Convert a published model or adapter into a workdir, or a workdir into diffusers' layout.

    Args:
      source: a model's folder or file, an adapter, a workdir; if there is no such path, a model's name on the hub.
      target: a new workdir; from a workdir, a folder, or a .safetensors file for its adapters. None: with `check`.
      base: for an adapter, the workdir of its model.
      rest: for a transformer alone, a folder in diffusers' layout with all other parts.
      check: print what the source is and needs, and write nothing.
    Raises: InputError for a source that can't be used, or a target that is there already.
    """
    source = source.expanduser()
    target, rest, base = (path and path.expanduser() for path in (target, rest, base))
    if target and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
        raise InputError(f"--to={target}: is there already; name a new one")
    if not source.exists() and source.suffix not in (SAFETENSORS, ".gguf"):
        source = fetch(str(source))
    adapter, workdir = holds_adapter(source), find_workdir(source)
    if base is not None and not adapter:
        raise InputError(f"--base={base}: is for an adapter that comes in, and {source} is none")
    if rest is not None and (adapter or workdir):
        raise InputError(f"--rest={rest}: is for a transformer alone, which {source} is not")
    with jax.set_mesh(make_mesh(MeshSettings(data=1, fsdp=-1))):
        if adapter:
            convert_adapter(source, target, base, check, console)
        elif workdir:
            if check:
                raise InputError(
                    "--check: is for what comes in; a workdir is shown by `sora-jax checkpoint inspect`"
                )
            export = export_adapter if target.suffix == SAFETENSORS else export_model
            export(source, target, console)
        else:
            model = read_model(source, rest)
            for line in [*model.notes, *(describe(model) if check else ())]:
                console.print(line)
            if not check:
                import_model(model, target, console)


def holds_adapter(source: pathlib.Path) -> bool:
    """Whether a file or folder holds an adapter, by the names of its tensors."""
    if source.is_dir():
        if any((source / name).is_file() for name in (CONFIG, *FILES)):
            return True
        others = ("config.json", INDEX_FILE, RELEASED, CHECKPOINTS)
        if len(list(source.glob(f"*{SAFETENSORS}"))) != 1 or any((source / name).exists() for name in others):
            return False
    elif source.suffix != SAFETENSORS:
        return False
    return any(is_adapter(name) for name in tensors_in(find_file(source)))


def find_workdir(source: pathlib.Path) -> bool:
    """Whether a folder is a workdir: of a run, or of a converted or released model."""
    return (source / CHECKPOINTS).is_dir() or (source / RELEASED / WEIGHTS).is_file()


def convert_adapter(source, target, base, check: bool, console: rich.console.Console):
    """An adapter's file -> a workdir: of adapters to train on, or, where it changes more, of the whole model."""
    if base is None:
        raise InputError(f"{source}: an adapter of what? --base=WORKDIR names the converted model")
    settings, _ = read_meta(*find_checkpoint(base))
    adapter = read_adapter(source, settings.transformer)
    ranks = sorted({x.rank for x in adapter.low_rank.values()})
    told = f"{source}: {len(adapter.low_rank)} low-rank weights of rank {', '.join(map(str, ranks)) or 'none'}"
    for line in (*adapter.notes, f"{told}, {len(adapter.whole)} whole tensors"):
        console.print(line)
    if check:
        return
    with new_folder(target) as partial:
        if trainable(adapter, settings.transformer):
            import_adapter(adapter, partial, target, base)
            kind = "adapters to sample with or to train on"
        else:
            write_merged(base, partial, [(adapter, 1.0)])
            kind = "the whole model, as the adapter changes more than the weights that a run can adapt"
    console.print(f"{target}: {kind}")


@contextlib.contextmanager
def new_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which takes the place of `target` at the end, or vanishes if an error comes first."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with explain_os_errors(target):
            partial.mkdir(parents=True)
            yield partial
            move_folder(partial, target)
    finally:
        remove_folder(partial)


def import_model(model: Model, target: pathlib.Path, console: rich.console.Console):
    """Write a published model as a workdir, and the second of two experts as a workdir in it."""
    with new_folder(target) as partial:
        for part in model.parts:
            copy_files(model.rest / part, partial / part)
        copy_file(model.rest / INDEX_FILE, partial / INDEX_FILE)
        for expert, workdir in zip(model.experts, (partial, partial / LOW_NOISE), strict=False):
            import_expert(model, expert, workdir, partial, console)
    console.print(
        f"{target}: sample from it, or train on from it with --config.train.init_from={target}",
    )


def import_expert(
    model: Model, expert: Expert, workdir: pathlib.Path, target: pathlib.Path, console: rich.console.Console
):
    """Write one transformer, the autoencoder, the tokenizer and their settings into a workdir."""
    settings = expert_settings(model.settings, expert, os.path.relpath(target, workdir))
    table = transformer_table(settings.transformer)
    transformer = Streamed(DiT, settings.transformer, expert.tensors, table, "transformer.")
    stream_model(workdir / RELEASED, settings, transformer, expert.where.name, console)
    coder = settings.autoencoder
    autoencoder = Streamed(Autoencoder, coder, model.autoencoder, autoencoder_table(coder))
    stream_model(workdir / "autoencoder", coder, autoencoder, "the autoencoder", console)
    copy_file(model.rest / "tokenizer" / "spiece.model", workdir / "tokenizer.model")
    dtypes = {
        part: {name: tensor.dtype for name, tensor in tensors.items()}
        for part, tensors in (("transformer", expert.tensors), ("vae", model.autoencoder))
    }
    (workdir / SETTINGS).write_text(to_json(settings))
    (workdir / PUBLISHED_DTYPES).write_text(json.dumps(dtypes))


def expert_settings(settings: Settings, expert: Expert, up: str) -> Settings:
    """A model's settings for one of its experts; `up` leads from its workdir to the encoders' folders."""
    flow = dataclasses.replace(settings.flow, time_min=expert.time_min, time_max=expert.time_max)
    moved = {
        name: dataclasses.replace(part, weights=str(as_path(up) / part.weights))
        for name in ("text", "image")
        if (part := getattr(settings, name)).weights
    }
    sample = dataclasses.replace(settings.sample, guidance=expert.guidance)
    if expert.time_max < 1:
        sample = dataclasses.replace(sample, guidance_low=0.0)
    return dataclasses.replace(settings, flow=flow, sample=sample, **moved)


class Streamed(NamedTuple):
    """A model to write: its module with settings, its foreign tensors and their table, our names' prefix."""

    module_class: type
    settings: object
    tensors: Mapping
    table: Table
    prefix: str = ""


def stream_model(folder: pathlib.Path, settings, model: Streamed, label: str, console: rich.console.Console):
    """Write a model's folder from foreign tensors, one tensor in memory at a time; `settings` beside it."""
    leaves = dict(named(abstract_params(model.module_class, model.settings)))
    types = {name: stored_dtype(model.tensors, model.table[name], leaf.shape[0]) for name, leaf in leaves.items()}
    entries = [Entry(model.prefix + name, leaf.shape, types[name]) for name, leaf in leaves.items()]
    with progress_bar(console) as bar:
        task = bar.add_task(f"writing {label}", total=len(leaves), numbers="")

        def parts():
            for name, leaf in leaves.items():
                yield from leaf_parts(model.tensors, model.table[name], leaf.shape, DTYPES[types[name]])
                bar.advance(task)

        write_tensors(folder / WEIGHTS, entries, parts())
    (folder / SETTINGS).write_text(to_json(settings))
