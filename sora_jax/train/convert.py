"""The verb `convert`: published Wan weights into a workdir, for `sample` and `train`, and a workdir out again.

What training may change, the transformer, becomes a checkpoint of ours; the autoencoder becomes a folder of ours;
the text encoder stays in the files that it was published in, which are copied as they are.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import rich.console
import safetensors.numpy

from sora_jax.errors import InputError
from sora_jax.files import copy_files, replacing
from sora_jax.mesh import make_mesh
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.dit import DiT
from sora_jax.settings import (
    AutoencoderSettings,
    FlowSettings,
    MeshSettings,
    SampleSettings,
    Settings,
    to_json,
)
from sora_jax.train.adapters import export_adapters, import_adapters, restore_merged
from sora_jax.train.checkpoint import FOLDER, find_checkpoint, read_meta, save_weights
from sora_jax.train.metrics import progress_bar
from sora_jax.weights import wan_configs
from sora_jax.weights.folders import INDEX, tensors_in
from sora_jax.weights.hub import fetch
from sora_jax.weights.store import load_model, named, save_model
from sora_jax.weights.tables import load_foreign, to_foreign
from sora_jax.weights.wan import autoencoder_table, from_original, transformer_table

SAFETENSORS = ".safetensors"
SHARD_BYTES = 5 * 2**30
DTYPES = "dtypes.json"  # of the tensors as they were published, so that they can be written back bit by bit
WEIGHTS_NAME = "diffusion_pytorch_model"
_NUMPY = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def convert(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    rest: pathlib.Path | None,
    base: pathlib.Path | None,
    console: rich.console.Console,
):
    """Into a workdir, or, if `source` is a workdir, out into diffusers' layout; a .safetensors file is adapters.

    Args:
      source: if there is no such folder, a model's name on the hub.
      base: the workdir of the model that adapters which come in adapt.
      rest: for a transformer in Wan's own layout, a folder in diffusers' layout with all else.
    Raises: InputError for a folder that is no model, a tensor that is missing, extra or misshapen, a pickle.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise InputError(f"--to={target}: is there already; name a new one")
    if not source.is_dir() and source.suffix != SAFETENSORS:
        source = fetch(str(source))
    with jax.set_mesh(make_mesh(MeshSettings(data=1, fsdp=-1))):
        if source.suffix == SAFETENSORS:
            import_adapters(source, target, base, console)
        elif target.suffix == SAFETENSORS:
            export_adapters(source, target, console)
        elif (source / FOLDER).is_dir():
            export_model(source, target, console)
        else:
            import_model(source, target, rest, console)


def import_model(
    source: pathlib.Path, target: pathlib.Path, rest: pathlib.Path | None, console: rich.console.Console
):
    """A folder of diffusers' WanPipeline, or of an original transformer and the rest of one -> a workdir."""
    original = not (source / "model_index.json").exists() and (source / "config.json").exists()
    if original and rest is None:
        raise InputError(f"{source}: only a transformer; --rest=FOLDER names the rest, in diffusers' layout")
    rest = rest if original else source
    if (
        wan_configs.read_json(rest / "model_index.json").get("transformer_2", [None])[0] is not None
        and not original
    ):
        raise InputError(f"{source}: two transformers; convert one of a time, in Wan's own layout, with --rest")
    folder = source if original else source / "transformer"
    transformer = wan_configs.transformer_settings(folder / "config.json")
    if transformer.condition_channels:
        raise InputError(f"{folder}: an image-to-video transformer, which nothing samples from yet")
    autoencoder = wan_configs.autoencoder_settings(rest / "vae" / "config.json")
    text = wan_configs.text_settings(rest / "text_encoder" / "config.json", str(target / "text_encoder"))
    scheduler = wan_configs.read_json(rest / "scheduler" / "scheduler_config.json")
    tokenizer = rest / "tokenizer" / "spiece.model"
    if not tokenizer.is_file():
        raise InputError(f"{tokenizer}: no such file; it comes with the tokenizer of google/umt5-xxl")
    settings = Settings(
        autoencoder=autoencoder,
        text=text,
        transformer=transformer,
        flow=FlowSettings(whole_times=1000),
        sample=SampleSettings(solver="unipc", shift=float(scheduler.get("flow_shift", 0.0))),
    )
    tensors = {from_original(name): tensor for name, tensor in tensors_in(folder).items()}
    params = load_foreign(tensors, transformer_table(transformer), DiT, transformer, where=str(folder))
    vae = tensors_in(rest / "vae")
    pixels = load_foreign(vae, autoencoder_table(autoencoder), Autoencoder, autoencoder, where=str(rest / "vae"))
    dtypes = {
        part: {name: tensor.dtype for name, tensor in found.items()}
        for part, found in (("transformer", tensors), ("vae", vae))
    }
    # Until here nothing is written.
    console.print(f"{source}: {sum(x.size for x in jax.tree.leaves(params)):,} parameters", highlight=False)
    save_model(target / "autoencoder", Autoencoder, autoencoder, pixels)
    for name in ("text_encoder", "tokenizer", "scheduler"):
        copy_files(rest / name, target / name)
    with replacing(target / "tokenizer.model") as temporary:
        shutil.copyfile(tokenizer, temporary)
    for name, text in (("settings.json", to_json(settings)), (DTYPES, json.dumps(dtypes))):
        with replacing(target / name) as temporary:
            temporary.write_text(text)
    save_weights(target, {"transformer": params}, settings)
    console.print(f"{target}: sample from it, or train on from it with --config.train.init_from={target}")


def export_model(source: pathlib.Path, target: pathlib.Path, console: rich.console.Console):
    """A workdir -> a folder of diffusers' WanPipeline."""
    folder, step = find_checkpoint(source)
    settings, _ = read_meta(folder, step)
    if not settings.text.weights:
        raise InputError(f"{source}: its text encoder is one of its own, which diffusers has no place for")
    published = source / DTYPES
    dtypes = json.loads(published.read_text()) if published.is_file() else {}
    params = restore_merged(folder, step, settings)["transformer"]
    table = transformer_table(settings.transformer)
    config = wan_configs.transformer_config(settings.transformer)
    write_weights(target / "transformer", table, params, config, dtypes.get("transformer", {}), console)
    autoencoder, pixels = load_model(source / "autoencoder", Autoencoder, AutoencoderSettings)
    config = wan_configs.autoencoder_config(autoencoder)
    write_weights(target / "vae", autoencoder_table(autoencoder), pixels, config, dtypes.get("vae", {}), console)
    text = pathlib.Path(settings.text.weights)
    for name in ("text_encoder", "tokenizer", "scheduler"):
        copy_files(text.parent / name, target / name)
    index = {
        "_class_name": "WanPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    }
    with replacing(target / "model_index.json") as temporary:
        temporary.write_text(json.dumps(index, indent=2))
    console.print(f"{target}: for diffusers' WanPipeline.from_pretrained", highlight=False)


def write_weights(folder: pathlib.Path, table, params: dict, config: dict, dtypes: dict, console):
    """Their tensors in files of at most SHARD_BYTES, with an index if there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, sizes, held = [], [], {}
    tensors = to_foreign(table, dict(named(params)))

    def flush():
        number = len(shards)
        path = folder / f"{WEIGHTS_NAME}-{number:05}.safetensors"
        with replacing(path) as temporary:
            safetensors.numpy.save_file(held, temporary, metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    with progress_bar(console) as bar:
        task = bar.add_task(f"writing {folder.name}", total=len(params), numbers="")
        for name, tensor in tensors:
            tensor = np.ascontiguousarray(tensor, _NUMPY[dtypes.get(name, "F32")])
            if held and sum(x.nbytes for x in held.values()) + tensor.nbytes > SHARD_BYTES:
                flush()
            held[name] = tensor
            sizes.append(tensor.nbytes)
            bar.advance(task)
        flush()
    single = len(shards) == 1
    files = {}
    for number, names in enumerate(shards):
        path = folder / f"{WEIGHTS_NAME}-{number:05}.safetensors"
        final = "" if single else f"-{number + 1:05}-of-{len(shards):05}"
        path.rename(folder / f"{WEIGHTS_NAME}{final}.safetensors")
        files |= dict.fromkeys(names, f"{WEIGHTS_NAME}{final}.safetensors")
    if not single:
        with replacing(folder / f"{WEIGHTS_NAME}{INDEX}") as temporary:
            temporary.write_text(json.dumps({"metadata": {"total_size": sum(sizes)}, "weight_map": files}))
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2))
