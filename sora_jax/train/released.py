"""Released models: the averaged parameters of a checkpoint as safetensors, to sample from and to train on.

A folder like a workdir, with its `autoencoder/` and `tokenizer.model`, but `model/` in the place of checkpoints:
what reads a run's weights reads these as well.
"""

import pathlib
import shutil

import rich.console

from sora_jax.errors import InputError
from sora_jax.files import replacing
from sora_jax.models.video_model import VideoModel
from sora_jax.settings import Settings
from sora_jax.train.checkpoint import RELEASED, STEP, find_checkpoint, read_meta, restore_trained
from sora_jax.train.loop import count_params
from sora_jax.weights.store import SETTINGS, WEIGHTS, save_model


def release(workdir: pathlib.Path, out: pathlib.Path, *, dtype: str, console: rich.console.Console):
    """Write the model of a workdir's newest checkpoint.

    Args:
      out: folder, made if it is absent.
      dtype: of the transformer and its text encoder; the autoencoder stays as it is.
    Raises: InputError if the checkpoint is none of a whole model of a transformer, or `out` can't be written.
    """
    folder, step = find_checkpoint(workdir)
    settings, _ = read_meta(folder, step)
    check_whole(settings, workdir)
    params = restore_trained(folder, step, settings)
    save_model(out / RELEASED, VideoModel, settings, params, dtype=dtype, metadata={STEP: str(step)})
    for name in ("tokenizer.model", f"autoencoder/{SETTINGS}", f"autoencoder/{WEIGHTS}"):
        with replacing(out / name) as path:
            shutil.copyfile(workdir / name, path)
    told = f"{out}: {count_params(params):,} parameters after {step:,} updates, in {dtype}"
    console.print(told, highlight=False, soft_wrap=True)


def check_whole(settings: Settings, workdir: pathlib.Path):
    """Raise InputError if a checkpoint with these settings does not hold a whole model of its own."""
    if settings.objective != "flow":
        raise InputError(f"{workdir}: holds an autoencoder, whose folder `autoencoder` is all that others need")
    if settings.lora.rank:
        raise InputError(f"{workdir}: holds adapters; merge them into their model with `convert` first")
    if (settings.flow.time_min, settings.flow.time_max) != (0, 1):
        raise InputError(f"{workdir}: holds one of two experts; `convert` writes both of them for others")
    if settings.text.weights:
        raise InputError(f"{workdir}: its text encoder is a published one; `convert` writes all of it for others")
