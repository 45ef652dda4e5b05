"""Adapters in and out of files, and merged into the model that they adapt."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import safetensors.numpy
from flax import traverse_util

from sora_jax.checkpoint.frozen_params import load_base
from sora_jax.checkpoint.manager import save_weights
from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.model_folder import named, open_tensors
from sora_jax.checkpoint.restore import restore_trained
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.config.load import to_json
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write, copy_files
from sora_jax.interop.lora import lora_settings, lora_table, normalised
from sora_jax.interop.tables import load_tensors, to_foreign
from sora_jax.models.video_model import abstract_trained


def merge(base: dict, adapters: dict, scale: float) -> dict:
    """The model with W + scale A B for every W that has an adapter; scale -1 times it takes them out again."""
    base, adapters = traverse_util.flatten_dict(base), traverse_util.flatten_dict(adapters)

    @jax.jit
    def merged(kernel, a, b):
        change = jnp.einsum(
            "...ir,...ro->...io", a, b, precision="highest", out_sharding=jax.typeof(kernel).sharding
        )
        return kernel + scale * change

    for (*layer, part), a in adapters.items():
        if part == "lora_a":
            kernel = (*layer, "kernel")
            base[kernel] = merged(base[kernel], a, adapters[*layer, "lora_b"])
    return traverse_util.unflatten_dict(base)


def restore_merged(folder: pathlib.Path, step: int, settings: Settings) -> dict:
    """The averaged parameters of a run, adapters merged into their model; float32."""
    trained = restore_trained(folder, step, settings)
    if not settings.lora.rank:
        return trained
    base = load_base(pathlib.Path(settings.train.init_from), as_computed=False)
    return merge(base, trained, settings.lora.scale)


def adapter_tensors(adapters: dict, settings: Settings) -> dict[str, np.ndarray]:
    """A transformer's adapters by diffusers' names, the scale in B: for diffusers alpha is the rank."""
    scale = settings.lora.scale
    params = {name: x * scale if name.endswith("lora_b") else x for name, x in named(adapters)}
    table = lora_table(settings.transformer)
    return {name: np.ascontiguousarray(x) for name, x in to_foreign(table, params)}


def export_adapters(source: pathlib.Path, target: pathlib.Path, console: rich.console.Console):
    """The adapters of a workdir -> a safetensors file for diffusers' `load_lora_weights`."""
    folder, step = find_checkpoint(source)
    settings, _ = read_meta(folder, step)
    if not settings.lora.rank:
        raise InputError(f"{source}: has no adapters; to write its whole model, name a folder with --to")
    tensors = adapter_tensors(restore_trained(folder, step, settings)["transformer"], settings)
    with atomic_write(target) as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt"})
    console.print(f"{target}: {len(tensors)} tensors, for diffusers' load_lora_weights", highlight=False)


def import_adapters(
    source: pathlib.Path, target: pathlib.Path, base: pathlib.Path | None, console: rich.console.Console
):
    """A safetensors file of adapters -> a workdir that samples with them, and that runs can begin with."""
    if base is None:
        raise InputError(f"{source}: adapters of what? --base=WORKDIR names the converted model")
    folder, step = find_checkpoint(base)
    settings, _ = read_meta(folder, step)
    with open_tensors(source) as file:
        tensors = normalised({name: file.get_tensor(name) for name in file.keys()}, str(source))  # noqa: SIM118
    lora = lora_settings(tensors, settings.transformer, str(source))
    train = dataclasses.replace(settings.train, init_from=str(base))
    settings = dataclasses.replace(settings, lora=lora, train=train)
    abstract = abstract_trained(settings)["transformer"]
    adapters = load_tensors(tensors, lora_table(settings.transformer), abstract, where=str(source))
    copy_files(base / "autoencoder", target / "autoencoder")
    for name, content in (
        ("tokenizer.model", (base / "tokenizer.model").read_bytes()),
        ("settings.json", to_json(settings).encode()),
    ):
        with atomic_write(target / name) as temporary:
            temporary.write_bytes(content)
    save_weights(target, {"transformer": adapters}, settings)
    console.print(f"{target}: rank {lora.rank}, {len(tensors)} tensors; sample from it", highlight=False)
