"""The verb `convert`: published Wan weights into a workdir, for `sample` and `train`, and a workdir out again.

What training may change, the transformer, becomes a checkpoint of ours; the autoencoder becomes a folder of ours;
the text encoder stays in the files that it was published in, which are copied as they are.
"""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import rich.console
import safetensors.numpy

from sora_jax.checkpoint.frozen_params import LOW_NOISE
from sora_jax.checkpoint.manager import save_weights
from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.model_folder import load_model, named, save_model
from sora_jax.checkpoint.workdir import CHECKPOINTS, find_checkpoint
from sora_jax.config.load import to_json
from sora_jax.config.schema import (
    AutoencoderSettings,
    FlowSettings,
    ImageSettings,
    MaskSettings,
    MeshSettings,
    SampleSettings,
    Settings,
    TextSettings,
)
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import atomic_write, copy_files, read_object
from sora_jax.interop import wan_configs
from sora_jax.interop.adapters import export_adapters, import_adapters, restore_merged
from sora_jax.interop.encoders import check_encoder
from sora_jax.interop.hub import fetch
from sora_jax.interop.safetensors_folder import INDEX, tensors_in
from sora_jax.interop.tables import blank, check_tensors, foreign_shapes, load_foreign, to_foreign
from sora_jax.interop.wan import autoencoder_table, from_original, transformer_table
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.dit import DiT

SAFETENSORS = ".safetensors"
SHARD_BYTES = 5 * 2**30
INDEX_FILE = "model_index.json"  # diffusers' list of a pipeline's parts, kept as it is
PUBLISHED = ("text_encoder", "tokenizer", "scheduler")  # parts that stay as they are
IMAGE = "image_encoder"
IMAGE_PARTS = (IMAGE, "image_processor")
DTYPES = "dtypes.json"  # of the tensors as they were published, so that they can be written back bit by bit
WEIGHTS_NAME = "diffusion_pytorch_model"
ORIGINAL_EXPERTS = ("high_noise_model", "low_noise_model")
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
    if base is not None and source.suffix != SAFETENSORS:
        raise InputError(f"--base={base}: is for adapters that come in, and {source} is no {SAFETENSORS} file")
    if rest is not None and (source.suffix == SAFETENSORS or (source / INDEX_FILE).exists()):
        raise InputError(f"--rest={rest}: is for a transformer in Wan's own layout, which {source} is not")
    with jax.set_mesh(make_mesh(MeshSettings(data=1, fsdp=-1))):
        if source.suffix == SAFETENSORS:
            import_adapters(source, target, base, console)
        elif target.suffix == SAFETENSORS:
            export_adapters(source, target, console)
        elif (source / CHECKPOINTS).is_dir():
            export_model(source, target, console)
        else:
            import_model(source, target, rest, console)


def import_model(
    source: pathlib.Path, target: pathlib.Path, rest: pathlib.Path | None, console: rich.console.Console
):
    """A folder of diffusers' WanPipeline or WanImageToVideoPipeline -> a workdir; or an original transformer, and
    the rest of such a folder.
    """
    names = ("transformer", "transformer_2")
    if original := not (source / INDEX_FILE).exists():
        if (source / ORIGINAL_EXPERTS[0]).is_dir():
            names = ORIGINAL_EXPERTS
        elif (source / "config.json").exists():
            names = (".",)
        else:
            original = False
    if original and rest is None:
        raise InputError(f"{source}: only a transformer; --rest=CHECKPOINTS names the rest, in diffusers' layout")
    rest = rest if original else source
    index = read_object(rest / INDEX_FILE)
    scheduler = read_object(rest / "scheduler" / "scheduler_config.json")
    tokenizer = rest / "tokenizer" / "spiece.model"
    if not tokenizer.is_file():
        raise InputError(f"{tokenizer}: no such file; it comes with the tokenizer of google/umt5-xxl")
    # Each expert: where it is, where it goes, its times.
    experts = [(source / names[0], target, (0.0, 1.0))]
    if len(names) > 1 and (index.get("transformer_2") or [None])[0] is not None:
        boundary = float(index.get("boundary_ratio") or 0.0)
        if not 0 < boundary < 1:
            raise InputError(f"{rest}/{INDEX_FILE}: two transformers, and boundary_ratio is {boundary}")
        experts = [
            (source / names[0], target, (boundary, 1.0)),
            (source / names[1], target / LOW_NOISE, (0.0, boundary)),
        ]
    found = {
        folder: {from_original(name): tensor for name, tensor in tensors_in(folder).items()}
        for folder, _, _ in experts
    }
    first = experts[0][0]
    transformer = wan_configs.transformer_settings(first / "config.json", found[first])
    image = ImageSettings()
    if transformer.image_width:
        image = wan_configs.image_settings(rest / IMAGE / "config.json", str(target / IMAGE))
    settings = Settings(
        autoencoder=(autoencoder := wan_configs.autoencoder_settings(rest / "vae" / "config.json")),
        text=wan_configs.text_settings(rest / "text_encoder" / "config.json", str(target / "text_encoder")),
        image=image,
        transformer=transformer,
        flow=FlowSettings(time_quantization=1000),
        # Wan 2.2 TI2V, which has times for each patch, has learned to be given a first frame.
        masks=MaskSettings(first_frame=float(bool(index.get("expand_timesteps"))), guided=False),  # as published
        sample=SampleSettings(solver="unipc", shift=float(scheduler.get("flow_shift", 0.0))),
    )
    table = transformer_table(transformer)
    for folder in found:
        check_tensors(found[folder], foreign_shapes(table, DiT, transformer), str(folder))
    vae = tensors_in(rest / "vae")
    pixels = load_foreign(vae, autoencoder_table(autoencoder), Autoencoder, autoencoder, where=str(rest / "vae"))
    parts = [*PUBLISHED, *IMAGE_PARTS] if transformer.image_width else PUBLISHED
    for part in parts:
        if not (rest / part).is_dir():
            raise InputError(f"{rest / part}: no such folder; a model of this kind is published with one")
    encoders: list[TextSettings | ImageSettings] = [settings.text]
    for encoder in encoders + [image] * bool(transformer.image_width):
        check_encoder(dataclasses.replace(encoder, weights=str(rest / pathlib.Path(encoder.weights).name)))
    # Until here nothing is written.
    for part in parts:
        copy_files(rest / part, target / part)
    with atomic_write(target / INDEX_FILE) as temporary:
        shutil.copyfile(rest / INDEX_FILE, temporary)
    for folder, workdir, (low, high) in experts:
        params = load_foreign(found[folder], table, DiT, transformer, where=str(folder))
        console.print(f"{folder}: {sum(x.size for x in jax.tree.leaves(params)):,} parameters", highlight=False)
        save_model(workdir / "autoencoder", Autoencoder, autoencoder, pixels)
        with atomic_write(workdir / "tokenizer.model") as temporary:
            shutil.copyfile(tokenizer, temporary)
        flow = dataclasses.replace(settings.flow, time_min=low, time_max=high)
        expert = dataclasses.replace(settings, flow=flow)
        dtypes = {
            part: {name: tensor.dtype for name, tensor in tensors.items()}
            for part, tensors in (("transformer", found[folder]), ("vae", vae))
        }
        for name, text in (("settings.json", to_json(expert)), (DTYPES, json.dumps(dtypes))):
            with atomic_write(workdir / name) as temporary:
                temporary.write_text(text)
        save_weights(workdir, {"transformer": params}, expert)
    console.print(f"{target}: sample from it, or train on from it with --config.train.init_from={target}")


def export_model(source: pathlib.Path, target: pathlib.Path, console: rich.console.Console):
    """A workdir -> a folder of the diffusers pipeline that it came from."""
    folder, step = find_checkpoint(source)
    settings, _ = read_meta(folder, step)
    if not settings.text.weights:
        raise InputError(f"{source}: its text encoder is one of its own, which diffusers has no place for")
    if settings.transformer.predicts != "velocity":
        raise InputError(f"{source}: its transformer predicts data, and diffusers' predict velocity")
    parts = [(source, "transformer")]
    if settings.flow.time_min:
        parts.append((source / LOW_NOISE, "transformer_2"))
    for workdir, name in parts:
        folder, step = find_checkpoint(workdir)
        of_part, _ = read_meta(folder, step)
        params = restore_merged(folder, step, of_part)["transformer"]
        config = wan_configs.transformer_config(of_part.transformer)
        dtypes = read_dtypes(workdir).get("transformer", {})
        write_weights(target / name, transformer_table(of_part.transformer), params, config, dtypes, console)
    autoencoder, pixels = load_model(source / "autoencoder", Autoencoder, AutoencoderSettings)
    config, dtypes = wan_configs.autoencoder_config(autoencoder), read_dtypes(source).get("vae", {})
    write_weights(target / "vae", autoencoder_table(autoencoder), pixels, config, dtypes, console)
    text = pathlib.Path(settings.text.weights)
    for part in [*PUBLISHED, *IMAGE_PARTS] if settings.image.weights else PUBLISHED:
        copy_files(text.parent / part, target / part)
    with atomic_write(target / INDEX_FILE) as temporary:
        shutil.copyfile(text.parent / INDEX_FILE, temporary)
    name = read_object(target / INDEX_FILE).get("_class_name", "DiffusionPipeline")
    console.print(f"{target}: for diffusers' {name}.from_pretrained", highlight=False)


def read_dtypes(workdir: pathlib.Path) -> dict[str, dict[str, str]]:
    """Of the tensors as they were published; empty if they were not, and are written in float32."""
    path = workdir / DTYPES
    return json.loads(path.read_text()) if path.is_file() else {}


def write_weights(folder: pathlib.Path, table, params: dict, config: dict, dtypes: dict, console):
    """Their tensors in files of at most SHARD_BYTES, with an index if there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, sizes, held = [], [], {}
    tensors = to_foreign(table, dict(named(params)))
    total = sum(1 for _ in to_foreign(table, dict(named(params)), blank))

    def flush():
        number = len(shards)
        path = folder / f"{WEIGHTS_NAME}-{number:05}.safetensors"
        with atomic_write(path) as temporary:
            safetensors.numpy.save_file(held, temporary, metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    with progress_bar(console) as bar:
        task = bar.add_task(f"writing {folder.name}", total=total, numbers="")
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
        with atomic_write(folder / f"{WEIGHTS_NAME}{INDEX}") as temporary:
            temporary.write_text(json.dumps({"metadata": {"total_size": sum(sizes)}, "weight_map": files}))
    with atomic_write(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2))
