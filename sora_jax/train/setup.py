"""Checks and reads before a run starts: batch and mesh, data, and the files that make a workdir self-contained."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from sora_jax.checkpoint.model_folder import load_settings, model_hash
from sora_jax.checkpoint.workdir import has_checkpoint
from sora_jax.config.load import to_json
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import axes_of, local_rows, num_shards
from sora_jax.core.storage import atomic_write, copy_file, copy_files, digest
from sora_jax.data.loader.mixture import Mixture
from sora_jax.data.loader.stream import Stream, train_crops, train_sequences
from sora_jax.kernels.attention import choose_kernel
from sora_jax.train.init_from import autoencoder_of, check_init_from

SHARDED = {"heads": "heads_all", "width": "embed", "mlp": "mlp"}  # sizes of a model, and their logical axes


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Attributes:
      stream: this process's part of each batch.
      share: that part as a fraction of the batch.
      hash: changes with any byte of the data, and with the autoencoder that encodes it in the step.
    """

    records: Mixture
    stream: Stream
    share: float
    hash: str


def open_data(settings: Settings, workdir: pathlib.Path, mesh: jax.sharding.Mesh) -> TrainingData:
    """The data of a run. Raises: InputError if it does not fit the settings, the workdir or `train.init_from`."""
    records = open_records(settings)
    rows = local_rows(mesh, settings.data.batch)
    make_stream = train_crops if settings.objective == "autoencoder" else train_sequences
    stream = make_stream(settings, rows=rows)
    if settings.train.init_from and (settings.lora.rank or not has_checkpoint(workdir)):
        check_init_from(settings, records)
    data_hash = records.digest
    if settings.data.autoencoder:
        folder = autoencoder_of(settings, records)
        check_same_autoencoder(workdir, folder)
        data_hash = digest([data_hash, model_hash(folder)])
    return TrainingData(records, stream, len(rows) / settings.data.batch, data_hash)


def open_records(settings: Settings) -> Mixture:
    """The data sets of `config.data.path`.

    Raises: InputError if their latents are not of the autoencoder that the settings describe.
    """
    if settings.objective == "autoencoder":
        return Mixture(settings.data.path, "pixels")
    records = Mixture(settings.data.path, settings.data.kind)
    folder = autoencoder_of(settings, records)
    stored = load_settings(folder, AutoencoderSettings)
    for key in ("latent_channels", "temporal_stride", "spatial_stride"):
        have, wanted = getattr(stored, key), getattr(settings.autoencoder, key)
        if have != wanted:
            where = folder if settings.data.autoencoder else records.path
            raise InputError(
                f"config.autoencoder: its {key} is {wanted}, but that of {where} is {have}; "
                f"take the config that made the data"
            )
    return records


def check_batch(settings: Settings, mesh: jax.sharding.Mesh):
    """Raise InputError if the batch or the model can't be sharded over the mesh."""
    rows = settings.train.accumulate * mesh.shape["data"] * mesh.shape["fsdp"]
    if settings.data.batch % rows:
        raise InputError(
            f"config.data.batch: {settings.data.batch} must be a multiple of accumulate x data x fsdp = {rows}"
        )
    if settings.objective == "autoencoder":
        return
    of_data = [("data", key, "tokens") for key in ("sequence_length", "text_length")]
    of_models = [(group, key, axis) for group in ("transformer", "text") for key, axis in SHARDED.items()]
    for group, key, axis in of_data + of_models:
        size, shards = getattr(getattr(settings, group), key), num_shards(axis, mesh.shape)
        if size % shards:
            axes = " x ".join(axes_of(axis))
            message = f"config.{group}.{key}: {size} must be a multiple of {axes} = {shards}"
            if key == "heads":
                divisors = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
                message += f"; {divisors} would do, and config.mesh.ring splits sequences without this limit"
            raise InputError(message)


def attention_kernel(settings: Settings, mesh: jax.sharding.Mesh) -> str:
    """The name of the kernel that self-attention runs in a training step."""
    model, data = settings.transformer, settings.data
    shape = 1, data.sequence_length, model.heads, model.width // model.heads
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(model.dtype))
    with jax.set_mesh(mesh):
        return choose_kernel(model.attention, x, x, data.clips_per_sequence, mesh.shape["ring"])


def check_same_autoencoder(workdir: pathlib.Path, autoencoder: pathlib.Path):
    """Raise InputError if a run would continue with another autoencoder than it started with."""
    copy = workdir / "autoencoder"
    if copy.is_dir() and has_checkpoint(workdir) and model_hash(copy) != model_hash(autoencoder):
        raise InputError(
            f"config.data.autoencoder: {autoencoder} is not the one that {workdir} began with; name {copy}"
        )


def write_workdir(workdir: pathlib.Path, records: Mixture, settings: Settings):
    """Write the settings, and for a transformer its autoencoder and tokenizer, into a new workdir."""
    with atomic_write(workdir / "settings.json") as temporary:
        temporary.write_text(to_json(settings))
    if settings.objective != "autoencoder":
        copy_files(autoencoder_of(settings, records), workdir / "autoencoder")
        copy_file(records.tokenizer, workdir / "tokenizer.model")
