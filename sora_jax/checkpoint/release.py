"""Released models: the averaged parameters of a checkpoint as safetensors, for sampling and further training.

A release has the `autoencoder/` and `tokenizer.model` of a workdir, and `model/` in place of `checkpoints/`.
Everything that reads the weights of a run reads a release as well.
"""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import rich.console

from sora_jax.checkpoint.meta import differing, read_meta
from sora_jax.checkpoint.model_folder import SETTINGS, WEIGHTS, save_model
from sora_jax.checkpoint.restore import restore_trained
from sora_jax.checkpoint.workdir import RELEASED, STEP, find_checkpoint, split_step
from sora_jax.config.schema import REFINE, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import content_hash, copy_file
from sora_jax.models.layers.params import count_params
from sora_jax.models.video_model import VideoModel

OTHER_FILES = ("tokenizer.model", f"autoencoder/{SETTINGS}", f"autoencoder/{WEIGHTS}")


def release(workdirs: Sequence[pathlib.Path], out: pathlib.Path, *, dtype: str, console: rich.console.Console):
    """Write the model of a workdir's newest checkpoint, or the mean of several models.

    The mean of models that started from the same weights is often better than each of them.
    Source: Wortsman et al. 2022 (arXiv 2203.05482), the uniform soup.

    Args:
      workdirs: training runs, single checkpoints WORKDIR/checkpoints/STEP, or released models; one that is named
        twice counts twice.
      out: folder, made if it is absent.
      dtype: of the transformer and its text encoder; the autoencoder keeps its own.
    Raises: InputError if a checkpoint holds no complete model, models differ in more than their weights, or `out`
      can't be written.
    """
    first, latest = workdirs[0], 0
    settings, _ = read_meta(*find_checkpoint(first))
    beside = split_step(first)[0]
    params = None
    for workdir in workdirs:
        folder, step = find_checkpoint(workdir)
        found, _ = read_meta(folder, step)
        check_whole(found, workdir)
        check_same(workdir, found, first, settings)
        part = jax.tree.map(lambda x: x / len(workdirs), restore_trained(folder, step, found))
        params = part if params is None else jax.tree.map(jnp.add, params, part)
        latest = max(latest, step)
    save_model(out / RELEASED, VideoModel, settings, params, dtype=dtype, metadata={STEP: str(latest)})
    for name in OTHER_FILES:
        copy_file(beside / name, out / name)
    of = f", the mean of {len(workdirs)} models" if len(workdirs) > 1 else ""
    summary = f"{out}: {count_params(params):,} parameters after {latest:,} updates{of}, in {dtype}"
    console.print(summary, highlight=False, soft_wrap=True)


def check_same(workdir: pathlib.Path, found: Settings, first: pathlib.Path, settings: Settings):
    """Raise InputError if two models differ in more than their weights, or a file is absent."""
    for key, here, there in differing(found, settings):
        raise InputError(
            f"{workdir}: has config.{key}={here}, {first} {there}; only models with the same settings have a mean"
        )
    beside, of_first = split_step(workdir)[0], split_step(first)[0]
    for name in OTHER_FILES:
        if not (beside / name).is_file():
            raise InputError(f"{beside / name}: no such file; a release needs it, copy it back")
        if content_hash(beside / name) != content_hash(of_first / name):
            raise InputError(
                f"{beside / name}: differs from {of_first / name}; only models with the same file have a mean"
            )


def check_whole(settings: Settings, workdir: pathlib.Path):
    """Raise InputError if a checkpoint with these settings does not hold a complete model."""
    if settings.objective == "autoencoder":
        raise InputError(f"{workdir}: holds an autoencoder; its folder `autoencoder` is its release")
    if settings.lora.rank:
        raise InputError(f"{workdir}: holds adapters; merge them into their model with `convert` first")
    if settings.objective != REFINE and (settings.flow.time_min, settings.flow.time_max) != (0, 1):
        raise InputError(f"{workdir}: holds one of two experts; `convert` writes both together")
    if settings.text.weights:
        raise InputError(f"{workdir}: its text encoder is a published one; `convert` writes the model with it")
