"""A published Wan model on the disk: its layout, tensors and settings, read without loading a weight."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping

from sora_jax.config.schema import (
    FlowSettings,
    ImageSettings,
    MaskSettings,
    SampleSettings,
    Settings,
    TextSettings,
)
from sora_jax.core.errors import InputError
from sora_jax.core.storage import read_object
from sora_jax.interop.encoders import check_encoder
from sora_jax.interop.tables import check_tensors, foreign_shapes
from sora_jax.interop.tensors import INDEX, SAFETENSORS, check_suffix, tensors_in
from sora_jax.interop.wan import configs as wan_configs
from sora_jax.interop.wan.sampling_defaults import (
    PUBLISHED,
    Published,
    model_name,
    sample_settings,
    scheduler_changes,
)
from sora_jax.interop.wan.tables import autoencoder_table, from_original, transformer_table
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.dit import DiT

INDEX_FILE = "model_index.json"  # diffusers' list of a pipeline's parts
ORIGINAL_EXPERTS = ("high_noise_model", "low_noise_model")
# The expert in the name of a single file, such as wan2.2_t2v_high_noise_14B_fp8_scaled or Wan2_2-T2V-A14B-LOW_fp8.
EXPERT_NAME = re.compile(r"(?<![a-z])(high|low)(?=noise|[^a-z]|$)")
TEXT, IMAGE = "text_encoder", "image_encoder"
PARTS = (TEXT, "tokenizer", "scheduler")  # folders that are copied as they are
IMAGE_PARTS = (IMAGE, "image_processor")
PREFIX = "model.diffusion_model."  # of a transformer's tensors in ComfyUI's files
TIMES = 1000  # the transformer was trained at whole thousandths of the time


@dataclasses.dataclass(frozen=True)
class Expert:
    """A transformer, and the range of times that it is for.

    where: its folder or file. tensors: by diffusers' names.
    """

    where: pathlib.Path
    tensors: Mapping
    time_min: float
    time_max: float
    guidance: float


@dataclasses.dataclass(frozen=True)
class Model:
    """A published model, checked: every tensor that is needed is there in the right shape.

    name: key of `defaults.PUBLISHED`. rest: the folder in diffusers' layout with all but the transformer.
    experts: the one for high noise first. settings: of the whole model; paths in them are relative to the workdir.
    autoencoder: its tensors. parts: folders of `rest` that are copied. notes: lines to show.
    """

    name: str
    layout: str
    rest: pathlib.Path
    experts: tuple[Expert, ...]
    settings: Settings
    autoencoder: Mapping
    parts: tuple[str, ...]
    notes: tuple[str, ...]


def read_model(source: pathlib.Path, rest: pathlib.Path | None) -> Model:
    """The model in a folder of diffusers' layout; or a transformer in Wan's own, with `rest` for all else.

    Args:
      source: a folder, or a .safetensors file with a transformer alone.
      rest: a folder in diffusers' layout.
    Raises: InputError for a folder that holds no such model, or a tensor that is missing, extra or misshapen.
    """
    layout, paths = find_transformers(source)
    if layout == "diffusers":
        if rest is not None:
            raise InputError(f"--rest={rest}: {source} has all its parts; leave the flag out")
        rest = source
    elif rest is None:
        raise InputError(
            f"{source}: only a transformer; --rest=FOLDER names the other parts, in diffusers' layout"
        )
    index = read_object(rest / INDEX_FILE)
    tokenizer = rest / "tokenizer" / "spiece.model"
    if not tokenizer.is_file():
        raise InputError(f"{tokenizer}: no such file; it comes with the tokenizer of google/umt5-xxl")
    if layout == "diffusers" and (index.get("transformer_2") or [None])[0] is None:
        paths = paths[:1]
    tensors = [read_transformer(path) for path in paths]
    config = (paths[0] if paths[0].is_dir() else paths[0].parent) / "config.json"
    transformer = wan_configs.transformer_settings(config, tensors[0])
    expand = bool(index.get("expand_timesteps"))
    name = model_name(transformer, experts=len(paths), expand_timesteps=expand, where=str(source.resolve()))
    published = PUBLISHED[name]
    changes, notes = {}, []
    if layout == "diffusers":
        changes, notes = scheduler_changes(rest / "scheduler" / "scheduler_config.json")
    experts = split_times(paths, tensors, boundary_of(index, rest, layout, published), published)
    settings = model_settings(rest, layout, transformer, sample_settings(published, **changes), expand)
    for expert in experts:
        table = transformer_table(transformer)
        check_tensors(expert.tensors, foreign_shapes(table, DiT, transformer), str(expert.where))
    parts = PARTS + (IMAGE_PARTS if transformer.image_width else ())
    for part in parts:
        if not (rest / part).is_dir():
            raise InputError(f"{rest / part}: no such folder; a model of this kind is published with one")
    autoencoder = tensors_in(rest / "vae")
    shapes = foreign_shapes(autoencoder_table(settings.autoencoder), Autoencoder, settings.autoencoder)
    check_tensors(autoencoder, shapes, str(rest / "vae"))
    encoders: list[TextSettings | ImageSettings] = [settings.text]
    for encoder in encoders + [settings.image] * bool(transformer.image_width):
        notes += check_encoder(dataclasses.replace(encoder, weights=str(rest / encoder.weights)))
    return Model(name, layout, rest, experts, settings, autoencoder, parts, tuple(notes))


def find_transformers(source: pathlib.Path) -> tuple[str, list[pathlib.Path]]:
    """The layout of a published model, and where its transformers are, the one for high noise first."""
    if source.is_file():
        check_suffix(source)
        return "single file", with_other_expert(source)
    if (source / INDEX_FILE).exists():
        return "diffusers", [source / "transformer", source / "transformer_2"]
    if (source / ORIGINAL_EXPERTS[0]).is_dir():
        return "wan", [source / name for name in ORIGINAL_EXPERTS]
    files = sorted(source.glob(f"*{SAFETENSORS}")) if source.is_dir() else []
    if any(map(expert_of, files)):
        if len(files) <= 2:
            return "single file", with_other_expert(next(filter(expert_of, files)))
        named = next(file for file in files if expert_of(file))
        raise InputError(f"{source}: {len(files)} .safetensors files; name one expert, such as --from={named}")
    if (source / "config.json").exists() or any(source.glob(f"*{INDEX}")):
        return "wan", [source]
    if len(files) == 1:
        return "single file", files
    if files:
        raise InputError(
            f"{source}: {len(files)} .safetensors files with no config.json and no index; name one, such as "
            f"--from={files[0]}"
        )
    if source.is_dir():
        for path in sorted(source.iterdir()):
            if path.suffix == ".gguf":
                check_suffix(path)
    read_object(source / INDEX_FILE)  # raises, with the nearest name
    raise InputError(f"{source}: no model")


def expert_of(file: pathlib.Path) -> str:
    """The expert that a single file holds, "high" or "low" by its name; "" if the name says neither."""
    found = EXPERT_NAME.findall(file.stem.lower())
    return found[-1] if found else ""


def with_other_expert(file: pathlib.Path) -> list[pathlib.Path]:
    """A single file; of a model with two experts both files, the one for high noise first.

    Raises: InputError if the name says that it holds one of two experts, and the other one is not beside it.
    """
    if not (expert := expert_of(file)):
        return [file]

    def common(name):  # the parts of the name that both have
        return re.sub(r"[^a-z0-9]", "", EXPERT_NAME.sub("", name.stem.lower()))

    other = {"high": "low", "low": "high"}[expert]
    found = [x for x in file.parent.glob(f"*{file.suffix}") if expert_of(x) == other and common(x) == common(file)]
    if len(found) != 1:
        raise InputError(
            f"{file}: by its name the expert for {expert} noise of a model with two; put the file for {other} "
            f"noise beside it, named as this one but for {other}, or rename this one if it is a whole model"
        )
    return [file, *found] if expert == "high" else [*found, file]


def read_transformer(path: pathlib.Path) -> dict:
    """A transformer's tensors by diffusers' names, from any of the three layouts."""
    found = tensors_in(path)
    for prefix in (PREFIX, PREFIX.removeprefix("model.")):
        if any(name.startswith(prefix) for name in found):
            found = {n.removeprefix(prefix): tensor for n, tensor in found.items() if n.startswith(prefix)}
    return {from_original(name): tensor for name, tensor in found.items()}


def boundary_of(index: dict, rest: pathlib.Path, layout: str, published: Published) -> float:
    """The time where the expert for low noise takes over; 0 if there is one transformer."""
    if not published.boundary:
        return 0.0
    boundary = index.get("boundary_ratio") or (0.0 if layout == "diffusers" else published.boundary)
    if not 0 < boundary < 1:
        raise InputError(f"{rest / INDEX_FILE}: two transformers, and boundary_ratio is {boundary}")
    return float(boundary)


def split_times(paths, tensors, boundary: float, published: Published) -> tuple[Expert, ...]:
    """The experts, each with the times and the guidance that it is for."""
    ranges = [(boundary, 1.0, published.guidance), (0.0, boundary, published.guidance_low)]
    return tuple(Expert(path, found, *span) for path, found, span in zip(paths, tensors, ranges, strict=False))


def model_settings(
    rest: pathlib.Path, layout: str, transformer, sample: SampleSettings, expand_timesteps: bool
) -> Settings:
    """Settings of a model from the configurations beside its weights."""
    image = ImageSettings()
    if transformer.image_width:
        image = wan_configs.image_settings(rest / IMAGE / "config.json", IMAGE)
        if layout == "diffusers":
            image = dataclasses.replace(image, resize=wan_configs.image_resize(rest / IMAGE_PARTS[1]))
    # A scheduler of diffusers' that rounds no time shows the model the times as they are.
    quantization = 0 if sample.time_grid == "diffusers_euler" else TIMES
    return Settings(
        autoencoder=wan_configs.autoencoder_settings(rest / "vae" / "config.json"),
        text=wan_configs.text_settings(rest / TEXT / "config.json", TEXT),
        image=image,
        transformer=transformer,
        flow=FlowSettings(time_quantization=quantization),
        # Wan 2.2 TI2V, which takes a time for each patch, has learned to be given the first frame.
        masks=MaskSettings(first_frame=float(expand_timesteps), guided=False),
        sample=sample,
    )


def describe(model: Model) -> list[str]:
    """Lines on a model: what it is, which tensors are read, and the memory and disk that it needs."""
    tensors = [expert.tensors for expert in model.experts]
    lines = [f"{model.name}, in the layout of {model.layout}"]
    total = 0
    for where, found in (
        *((expert.where, expert.tensors) for expert in model.experts),
        (model.rest / "vae", model.autoencoder),
    ):
        numbers = sum(math.prod(tensor.shape) for tensor in found.values())
        types = ", ".join(sorted({tensor.dtype for tensor in found.values()}))
        lines.append(f"{where}: {len(found):,} tensors, {numbers:,} numbers, {types}")
        total += sum(math.prod(tensor.shape) * (4 if tensor.dtype == "F32" else 2) for tensor in found.values())
    copied = sum(
        file.stat().st_size for part in model.parts for file in (model.rest / part).iterdir() if file.is_file()
    )
    largest = max(math.prod(tensor.shape) * 4 for found in tensors for tensor in found.values())
    sampling = (
        sum(2 * math.prod(t.shape) for found in (*tensors, model.autoencoder) for t in found.values()) + copied
    )
    lines.append(f"disk: {(total + copied) / 1e9:,.2f} GB; memory to convert: {largest / 1e9:,.2f} GB and 1 GB")
    lines.append(f"memory to sample: {sampling / 1e9:,.2f} GB of weights, and the activations: see `plan`")
    sample = model.settings.sample
    lines.append(f"defaults: {json.dumps(dataclasses.asdict(sample), ensure_ascii=False)}")
    return lines
