"""What a model has besides what is trained: a published text encoder, the model that adapters adapt."""

import pathlib

import jax
import jax.numpy as jnp

from sora_jax.errors import InputError
from sora_jax.models.video_model import init_trained, join
from sora_jax.settings import Settings
from sora_jax.train.checkpoint import abstract_on_mesh, find_checkpoint, read_meta, restore_ema, restore_trained
from sora_jax.weights.encoders import load_encoder

LOW_NOISE = "low_noise"  # in a workdir, that of the expert for the times below


def load_frozen(settings: Settings, *, have: dict | None = None) -> dict:
    """Parameters of a VideoModel that no training changes, on the current mesh, in the type that they compute in.

    Args:
      have: parameters of a model with the same text encoder, which is then not read again.
    Raises: InputError if what the settings name is not there, or is of another model.
    """
    frozen = {}
    if settings.lora.rank:
        frozen = load_base(pathlib.Path(settings.train.init_from))
    if settings.text.weights:
        frozen["text_encoder"] = have["text_encoder"] if have else load_encoder(settings.text)
    return frozen


def load_base(workdir: pathlib.Path, *, as_computed: bool = True) -> dict:
    """The parameters of the model that adapters adapt: in the type that they compute in, or in float32."""
    folder, step = find_checkpoint(workdir)
    settings, _ = read_meta(folder, step)
    if settings.lora.rank:
        raise InputError(f"{workdir}: holds adapters itself; merge them into their model with `convert` first")
    abstract = jax.eval_shape(lambda: init_trained(settings, jax.random.key(0)))

    def held(path, x):
        # Norms and modulation compute in float32; what a layer casts on its way in can as well be held so.
        dtype = settings.transformer.dtype if as_computed and path[-1].key == "kernel" else x.dtype
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding)

    abstract = jax.tree.map_with_path(held, abstract_on_mesh(abstract))
    return restore_ema(folder, step, abstract)


def restore_model(folder: pathlib.Path, step: int, settings: Settings) -> dict:
    """All parameters of a VideoModel: the averaged ones of a checkpoint, and those that stay as they are."""
    return join(restore_trained(folder, step, settings), load_frozen(settings))
