"""A trained model that is ready to sample from: `load_generator` reads the workdir of a training run."""

import dataclasses
import pathlib
from collections.abc import Sequence

from sora_jax.checkpoint.frozen_params import (
    LOW_NOISE,
    load_frozen_params,
    restore_for_compute,
    restore_model,
    with_adapters,
)
from sora_jax.checkpoint.meta import check_models, read_meta
from sora_jax.checkpoint.model_folder import load_model
from sora_jax.checkpoint.workdir import find_checkpoint, split_step
from sora_jax.config.load import parse_size
from sora_jax.config.schema import REFINE, AutoencoderSettings, SampleSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.generate.sampling.step_cache import FILE, VelocityChange, read_velocity_change
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.video_model import join


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained model with its settings, autoencoder and tokenizer.

    step: updates that the parameters have had.
    low_noise: (parameters, settings) of the expert for times below the settings' flow.time_min, if there is one.
    velocity_change: of these parameters, if it has been measured.
    """

    settings: Settings
    params: dict
    autoencoder: AutoencoderSettings
    autoencoder_params: dict
    tokenizer: Tokenizer
    step: int
    low_noise: tuple[dict, Settings] | None = None
    velocity_change: VelocityChange | None = None


def read_run(
    workdir: pathlib.Path, step: int | None = None, *, refiner: bool = False
) -> tuple[pathlib.Path, int, Settings]:
    """(folder of a workdir's checkpoints, a step, by default that of the newest one, its settings).

    Args:
      refiner: whether it may be one of a refiner.
    Raises: InputError if there is no checkpoint, or not one of a transformer.
    """
    folder, newest = find_checkpoint(workdir)
    step = newest if step is None else step
    settings, _ = read_meta(folder, step)
    if settings.objective == "autoencoder":
        raise InputError(f"{workdir}: its checkpoint is an {settings.objective}; `sample` needs a transformer's")
    if settings.objective == REFINE and not refiner:
        raise InputError(f"{workdir}: holds a refiner; `sora-jax refine --checkpoint={workdir}` runs it")
    return folder, step, settings


def load_generator(
    workdir: pathlib.Path, *, dtype: str | None = None, lora: Sequence[str] = (), step: int | None = None
) -> Generator:
    """The averaged parameters of a checkpoint in a workdir, laid out on the current mesh.

    Args:
      workdir: of a training run, a released model, or one checkpoint WORKDIR/checkpoints/STEP.
      step: of the checkpoint; None: the newest.
      dtype: to compute in; None: that of config.sample, or else of each model.
      lora: adapters to add, each PATH or PATH:STRENGTH; for one of two experts high=PATH or low=PATH.
    Raises: InputError if there is no checkpoint, it is not a transformer's, or a part of it is missing.
    """
    folder, step, settings = read_run(workdir, step)
    if settings.flow.time_max < 1:
        raise InputError(
            f"{workdir}: an expert for times up to {settings.flow.time_max}; sample from the workdir around it"
        )
    return load_model_of(workdir, folder, step, settings, dtype=dtype, lora=lora)


def load_model_of(
    workdir: pathlib.Path,
    folder: pathlib.Path,
    step: int,
    settings: Settings,
    *,
    dtype: str | None = None,
    lora: Sequence[str] = (),
) -> Generator:
    """The model that `read_run` found in a workdir, with its autoencoder and tokenizer."""
    workdir = split_step(workdir)[0]
    autoencoder, autoencoder_params = load_model(workdir / "autoencoder", Autoencoder, AutoencoderSettings)
    if dtype := dtype or settings.sample.dtype:
        settings, autoencoder = _computed_in(settings, dtype), dataclasses.replace(autoencoder, dtype=dtype)
    params = with_adapters(restore_model(folder, step, settings), settings, lora)
    low_noise = load_low_noise(workdir / LOW_NOISE, settings, params) if settings.flow.time_min else None
    if low_noise:
        low_noise = (with_adapters(*low_noise, lora), low_noise[1])
    tokenizer = Tokenizer(workdir / "tokenizer.model")
    change = read_velocity_change(workdir / FILE) if (workdir / FILE).is_file() else None
    change = change if change and change.step == step else None  # one of an earlier step is out of date
    return Generator(settings, params, autoencoder, autoencoder_params, tokenizer, step, low_noise, change)


def load_low_noise(workdir: pathlib.Path, settings: Settings, params: dict) -> tuple[dict, Settings]:
    """(parameters, settings) of the expert for low noise of the model with these settings and parameters.

    Raises: InputError if it is absent, another model, or not for the times below.
    """
    if not workdir.is_dir():
        raise InputError(
            f"{workdir}: no such folder; this model needs the workdir of the expert for times below "
            f"{settings.flow.time_min} there: train it, or link the one that `convert` made"
        )
    folder, step, low = read_run(workdir)
    check_models(low, settings, str(workdir))
    if low.flow.time_max != settings.flow.time_min:
        raise InputError(
            f"{workdir}: is for times up to config.flow.time_max={low.flow.time_max}, "
            f"the expert above it for those from {settings.flow.time_min}"
        )
    low = dataclasses.replace(low, transformer=settings.transformer)  # its type may differ
    return join(restore_for_compute(folder, step, low), load_frozen_params(low, have=params)), low


def with_dtype(generator: Generator, dtype: str) -> Generator:
    """The same models, computing in another type; "" changes nothing."""
    if not dtype:
        return generator
    return dataclasses.replace(
        generator,
        settings=_computed_in(generator.settings, dtype),
        autoencoder=dataclasses.replace(generator.autoencoder, dtype=dtype),
    )


def _computed_in(settings: Settings, dtype: str) -> Settings:
    parts = {name: getattr(settings, name) for name in ("text", "image", "transformer")}
    return dataclasses.replace(
        settings, **{name: dataclasses.replace(part, dtype=dtype) for name, part in parts.items()}
    )


def video_size(settings: SampleSettings) -> tuple[int, int]:
    """(height, width) of the videos, in pixels."""
    size = parse_size(settings.size, "--size")
    return (size, size) if isinstance(size, int) else size


def latent_shape(settings: Settings, sample: SampleSettings) -> tuple[int, int, int]:
    """(frames, rows, columns) of the latents of a video of this size and length.

    Raises: InputError if the model can't make it; names the nearest that it can.
    """
    stride, temporal = settings.autoencoder.spatial_stride, settings.autoencoder.temporal_stride
    patch = settings.transformer.patch
    size = video_size(sample)
    for side, p, name in zip(size, patch[1:], ("height", "width"), strict=True):
        multiple = stride * p
        if side % multiple:
            lower = max(side // multiple, 1) * multiple
            raise InputError(
                f"--size={sample.size}: the {name} {side} is no multiple of {multiple};"
                f" the nearest are {lower} and {lower + multiple}"
            )
    if sample.frames < 1 or (sample.frames - 1) % temporal:
        lower = max(sample.frames - 1, 0) // temporal * temporal + 1
        raise InputError(
            f"--frames={sample.frames}: must be {temporal} n + 1; the nearest are {lower} and {lower + temporal}"
        )
    return (sample.frames - 1) // temporal + 1, size[0] // stride, size[1] // stride
