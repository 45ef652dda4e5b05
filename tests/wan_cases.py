"""Small models of each of Wan's forms with random weights and inputs, the same on every machine.

The weights are made from each tensor's name and shape in diffusers or transformers, so that the comparison with
them and the recorded outputs in goldens/ are of one and the same model.
"""

import dataclasses
import math
import zlib

import jax
import numpy as np

from sora_jax.config.schema import AutoencoderSettings, ImageSettings, TextSettings, TransformerSettings
from sora_jax.core.patches import PatchBatch, grid_positions, patchify, unpatchify
from sora_jax.interop.tables import foreign_shapes, load_foreign
from sora_jax.interop.wan.tables import autoencoder_table, image_table, text_table, transformer_table
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.dit import DiT
from sora_jax.models.image_encoder import ImageEncoder
from sora_jax.models.layers.params import bind
from sora_jax.models.text_encoder import TextEncoder

CASES = {
    "wan21": AutoencoderSettings(width=8, decoder_width=8, latent_channels=4, dtype="float32"),
    "wan22": AutoencoderSettings(
        width=8, decoder_width=12, latent_channels=6, patch=2, shortcuts=True, dtype="float32"
    ),
}
ROWS, COLUMNS = 32, 48

_T2V = TransformerSettings(
    channels=4, text_width=16, width=48, heads=4, mlp=64, layers=2, frequencies=16, dtype="float32"
)
TRANSFORMERS = {
    "t2v": _T2V,
    "i2v": dataclasses.replace(_T2V, condition_channels=8, image_width=24),
    "flf2v": dataclasses.replace(_T2V, condition_channels=8, image_width=24, image_positions=10),
    "i2v-a14b": dataclasses.replace(_T2V, condition_channels=8),
    "ti2v": dataclasses.replace(_T2V, channels=6, width=72, heads=3),
}
TEXT = TextSettings(
    vocabulary=64, width=16, heads=4, head_dim=8, mlp=32, layers=2, max_tokens=40, max_distance=24, dtype="float32"
)
IMAGE = ImageSettings(width=24, heads=2, mlp=40, layers=2, patch=14, size=28, dtype="float32")
LATENT_GRID = (3, 4, 6)  # frames, rows, columns
TEXT_TOKENS = 512  # diffusers takes what is before the last 512 for an image


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights by their names; every pixel that comes out is well inside [-1, 1], where nothing is clipped."""
    return {name: _random_tensor(name, shape) for name, shape in shapes.items()}


def _random_tensor(name, shape):
    # RandomState, because its streams are frozen for good (NEP 19).
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("gamma") or (name.endswith("weight") and len(shape) == 1):  # of a norm
        return 1 + 0.1 * values
    if name.endswith("bias") or len(shape) == 1:
        return 0.1 * values
    if name == "shared.weight" or name.endswith(("table", "attention_bias.weight", "pos_embed")):
        return 0.5 * values
    gain = 0.15 if name == "decoder.conv_out.weight" else 1.0
    return values * (gain / math.sqrt(math.prod(shape[1:])))


def random_video(frames: int) -> np.ndarray:
    """[1, F, H, W, 3] float32 in [-1, 1]."""
    return np.random.RandomState(frames).uniform(-1, 1, (1, frames, ROWS, COLUMNS, 3)).astype(np.float32)


def random_latents(frames: int, settings: AutoencoderSettings) -> np.ndarray:
    """Raw latents of a video of this many frames, [1, F', H', W', C] float32."""
    side = settings.spatial_stride
    shape = (1, 1 + frames // settings.temporal_stride, ROWS // side, COLUMNS // side, settings.latent_channels)
    return np.random.RandomState(frames + 1).standard_normal(shape).astype(np.float32)


def autoencoder_params(settings: AutoencoderSettings) -> dict:
    return foreign_params(Autoencoder, autoencoder_table(settings), settings)


def transformer_params(case: str) -> dict:
    settings = TRANSFORMERS[case]
    return foreign_params(DiT, transformer_table(settings), settings)


def foreign_params(module_class, table, settings) -> dict:
    """Our parameters from their random tensors."""
    tensors = random_tensors(foreign_shapes(table, module_class, settings))
    return load_foreign(tensors, table, module_class, settings, where="random")


def transformer_inputs(case: str) -> dict[str, np.ndarray]:
    """Latents, times in [0, 1] (one for each frame, the first 0, in ti2v), text, and what the case asks for."""
    settings, random = TRANSFORMERS[case], np.random.RandomState(1)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    inputs = {
        "latents": normal(2, *LATENT_GRID, settings.channels),
        "text": normal(2, TEXT_TOKENS, settings.text_width),
        "times": np.float32([[0.7] * 3, [0.25] * 3]),
    }
    if case == "ti2v":
        inputs["times"][:, 0] = 0
    if settings.condition_channels:
        inputs["condition"] = normal(2, *LATENT_GRID, settings.condition_channels)
    if settings.image_width:
        inputs["image"] = normal(2, settings.image_positions or 5, settings.image_width)
    return inputs


def our_velocity(case: str, params: dict | None = None) -> np.ndarray:
    """[2, F, H, W, C], of the transformer of this case, with its random parameters if none are given."""
    settings, inputs = TRANSFORMERS[case], transformer_inputs(case)
    params = transformer_params(case) if params is None else params
    grid = tuple(side // p for side, p in zip(LATENT_GRID, settings.patch, strict=True))
    N = math.prod(grid)
    positions = np.broadcast_to(grid_positions(grid), (2, N, 3))
    batch = PatchBatch(
        patches=None,
        positions=positions,
        segment_ids=np.ones((2, N), np.int32),
        conditioning_mask=None,
        text=inputs["text"],
        text_segment_ids=np.ones((2, TEXT_TOKENS), np.int32),
    )
    if "condition" in inputs:
        batch = batch.replace(condition=patchify(inputs["condition"], settings.patch))
    if "image" in inputs:
        segment_ids = np.ones(inputs["image"].shape[:2], np.int32)
        batch = batch.replace(image=inputs["image"], image_segment_ids=segment_ids)

    @jax.jit
    def velocity(params):
        patches, frame = patchify(inputs["latents"], settings.patch), positions[..., 0]
        return bind(DiT, settings, params)(batch, patches, inputs["times"], time_index=frame)

    return unpatchify(np.asarray(velocity(params)), grid, settings.patch)


def random_tokens() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and which are real, [2, S] int32, of two texts of which the second is shorter."""
    tokens = np.random.RandomState(2).randint(1, TEXT.vocabulary, (2, TEXT.max_tokens))
    real = np.ones_like(tokens)
    real[1, 9:] = 0
    return (tokens * real).astype(np.int32), real.astype(np.int32)


def our_text() -> np.ndarray:
    tokens, real = random_tokens()
    params = foreign_params(TextEncoder, text_table(TEXT), TEXT)
    return np.asarray(jax.jit(lambda params: bind(TextEncoder, TEXT, params)(tokens, real))(params))


def random_images() -> np.ndarray:
    """[2, 28, 28, 3] float32, normalised."""
    return np.random.RandomState(3).standard_normal((2, IMAGE.size, IMAGE.size, 3)).astype(np.float32)


def our_image() -> np.ndarray:
    params = foreign_params(ImageEncoder, image_table(IMAGE), IMAGE)
    return np.asarray(jax.jit(lambda params: bind(ImageEncoder, IMAGE, params)(random_images()))(params))
