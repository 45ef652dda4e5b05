"""The smallest settings that have every part, and random packed batches for them."""

import dataclasses
import math

import jax
import jax.extend
import numpy as np

from sora_jax.config.schema import (
    AutoencoderSettings,
    DataSettings,
    MeshSettings,
    OptimizerSettings,
    Settings,
    TextSettings,
    TrainSettings,
    TransformerSettings,
)
from sora_jax.core.mesh import make_mesh, spec
from sora_jax.core.patches import PatchBatch, grid_positions
from sora_jax.diffusion.noise import ClipNoise
from sora_jax.models.layers.params import abstract_params

SETTINGS = Settings(
    data=DataSettings(
        batch=8, sequence_length=32, text_length=12, clips_per_sequence=3, crop_frames=5, crop_size="16x16"
    ),
    autoencoder=AutoencoderSettings(
        width=8, decoder_width=8, multipliers=(1, 1, 2, 2), blocks=1, latent_channels=4, dtype="float32"
    ),
    text=TextSettings(
        vocabulary=64, width=16, heads=4, head_dim=4, mlp=32, layers=2, max_tokens=8, dtype="float32"
    ),
    transformer=TransformerSettings(
        channels=4, text_width=16, width=48, heads=4, mlp=64, layers=2, frequencies=16, dtype="float32"
    ),
    optimizer=OptimizerSettings(learning_rate=1e-3, warmup_steps=2, ema_decay=0.9),
    train=TrainSettings(steps=8, log_every=1, save_every=4),
)

# An autoencoder of two levels, whose latents are not what they are by themselves.
CODER = AutoencoderSettings(
    width=4,
    decoder_width=4,
    multipliers=(1, 1),
    blocks=1,
    temporal=(True,),
    latent_channels=4,
    latent_mean=(0.5, 0.0, 0.0, -0.5),
    latent_std=(2.0, 1.0, 1.0, 0.5),
    dtype="float32",
)


def change(settings: Settings, **groups) -> Settings:
    """Settings with some keys of some groups changed: change(s, train={"steps": 3})."""
    return dataclasses.replace(
        settings, **{name: dataclasses.replace(getattr(settings, name), **keys) for name, keys in groups.items()}
    )


def pack(rows, settings: Settings) -> PatchBatch:
    """Rows of clips as numpy; a clip is (grid, patches [N, P], tokens)."""
    N, S = settings.data.sequence_length, settings.data.text_length
    B, P = len(rows), rows[0][0][1].shape[-1]
    batch = PatchBatch(
        patches=np.zeros((B, N, P), np.float32),
        positions=np.zeros((B, N, 3), np.int32),
        segment_ids=np.zeros((B, N), np.int32),
        conditioning_mask=np.zeros((B, N), bool),
        text=np.zeros((B, S), np.int32),
        text_segment_ids=np.zeros((B, S), np.int32),
    )
    for b, clips in enumerate(rows):
        n = s = 0
        for segment, (grid, patches, tokens) in enumerate(clips, 1):
            count = len(patches)
            batch.patches[b, n : n + count] = patches
            batch.positions[b, n : n + count] = grid_positions(grid)
            batch.segment_ids[b, n : n + count] = segment
            batch.text[b, s : s + len(tokens)] = tokens
            batch.text_segment_ids[b, s : s + len(tokens)] = segment
            n, s = n + count, s + len(tokens)
    return batch


def random_clip(rng, grid, settings: Settings):
    """A clip of noise with a caption of noise."""
    P = settings.transformer.channels * int(np.prod(settings.transformer.patch))
    tokens = rng.integers(2, settings.text.vocabulary, rng.integers(1, 5))
    return grid, rng.normal(size=(int(np.prod(grid)), P)).astype(np.float32), tokens


def random_batch(seed: int, settings: Settings = SETTINGS) -> PatchBatch:
    """A batch with rows of one to three clips of several grids, and padding."""
    rng = np.random.default_rng(seed)
    choices = [[(3, 2, 3)], [(1, 2, 2), (2, 3, 2)], [(1, 1, 1), (2, 2, 4), (1, 3, 3)], [(2, 4, 4)]]
    rows = [[random_clip(rng, grid, settings) for grid in choices[b % 4]] for b in range(settings.data.batch)]
    return pack(rows, settings)


def random_params(module_class, settings) -> dict:
    """Parameters of a module, small normal numbers; nothing is compiled for it."""
    rng = np.random.default_rng(0)
    shapes = abstract_params(module_class, settings)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)


def mesh_of(data=1, **sizes):
    """A mesh over the first devices."""
    return make_mesh(MeshSettings(data, **sizes), jax.devices()[: math.prod(sizes.values()) * data])


def on_mesh(batch: PatchBatch) -> PatchBatch:
    """The batch laid out on the current mesh."""
    return jax.tree.map(lambda x: jax.device_put(x, spec("batch tokens" + " ." * (x.ndim - 2))), batch)


def count(jaxpr, name: str, where: str = "") -> int:
    """How often an operation runs, the turns of loops counted; `where` is a part of the name it was given."""
    total = 0
    for eqn in jaxpr.eqns:
        total += eqn.primitive.name == name and where in str(eqn.params.get("name", ""))
        turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += turns * sum(count(inner, name, where) for inner in jax.extend.core.jaxprs_in_params(eqn.params))
    return total


def clip_noise(keys) -> ClipNoise:
    """The noise of sequences of one clip each, from their keys [B]."""
    return ClipNoise(jax.vmap(jax.random.key_data)(keys)[:, None])
