"""The programs of `train`, `sample` and `prepare`, as jitted functions with the types of their arguments."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax.checkpoint.frozen_params import compute_types
from sora_jax.checkpoint.restore import abstract_on_mesh
from sora_jax.config.load import parse_size
from sora_jax.config.schema import DISTILLATIONS, REFINE, LoraSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import spec
from sora_jax.core.patches import PatchBatch, patch_grid
from sora_jax.data.conditioning_frames import conditioning_frame_indices, image_token_capacity
from sora_jax.diffusion.noise import ClipNoise
from sora_jax.generate.generator import latent_shape
from sora_jax.generate.sampling.pipeline import SOLVERS
from sora_jax.generate.sampling.steps import StepInputs, StepProgram, begin, solver_step
from sora_jax.interop.lpips import load_lpips
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.autoencoder.pixels import frame_axes
from sora_jax.models.autoencoder.streaming import decode_next, encode_next
from sora_jax.models.layers.params import abstract_params
from sora_jax.models.video_model import VideoModel, abstract_trained
from sora_jax.train.objectives.registry import make_objective
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import abstract_state
from sora_jax.train.step import make_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function, to be lowered under a mesh.

    Args:
      parts: types of everything on the chips while it runs, by name, including what is not an argument.
      shape: (sequences, patches, text tokens) of the transformer in one run; None for the autoencoder.
    """

    what: str
    lower: Callable[[], Any]
    parts: dict[str, Any]
    shape: tuple[int, int, int] | None


def make_program(settings: Settings, what: str) -> Program:
    """The program of one step of `what`, on the current mesh."""
    return {"train": train, "sample": sample, "decode": decode, "encode": encode}[what](settings)


def train(settings: Settings) -> Program:
    """One update of the training loop."""
    objective = make_objective(settings, settings.autoencoder)
    optimizer = make_optimizer(settings.optimizer, settings.train.steps, objective.players, objective.rates)
    state = abstract_on_mesh(abstract_state(objective, optimizer))
    frozen, batch = abstract_on_mesh(abstract_frozen(settings)), abstract_batch(settings)
    parts = {"weights": state.params, "average": state.ema, "optimizer": state.opt_state, "frozen": frozen}
    data = settings.data
    return Program(
        "train",
        lambda: make_step(objective, optimizer, settings).lower(state, frozen, batch),
        parts | {"batch": batch},
        (data.batch, data.sequence_length, data.text_length) if settings.objective != "autoencoder" else None,
    )


def sample(settings: Settings) -> Program:
    """One step of the solver, for one video on each shard of the batch."""
    mesh, text = jax.sharding.get_mesh(), settings.text
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    patch, made = settings.transformer.patch, settings.sample
    N = math.prod(patch_grid(latent_shape(settings, made), patch))
    I = len(conditioning_frame_indices(settings.transformer, 1)) * settings.image.tokens
    batch = _rows(settings, rows, N, 2 * rows, text.max_tokens, I, jnp.float32, "batch")
    params = abstract_on_mesh(abstract_model(settings))
    program, number = StepProgram(settings, SOLVERS[made.solver]), jax.ShapeDtypeStruct((), jnp.int32)
    noise = ClipNoise(jax.ShapeDtypeStruct((rows, 1, 2), jnp.uint32))
    pairs, state = abstract_on_mesh(jax.eval_shape(functools.partial(begin, program), params, batch, noise))
    times = jax.ShapeDtypeStruct((made.steps + 1,), jnp.float32)
    inputs = StepInputs(pairs, batch.conditioning_mask, times)
    guidance = jax.ShapeDtypeStruct((), jnp.float32)
    return Program(
        "sample",
        lambda: solver_step.lower(program, params, inputs, state, number, guidance),
        {"weights": params, "autoencoder": abstract_autoencoder(settings), "batch": (pairs, state)},
        # With and without the prompt; a step of Heun has two velocities.
        (2 * rows * (2 if made.solver == "heun" else 1), N, text.max_tokens),
    )


def decode(settings: Settings) -> Program:
    """Decoding of one latent frame, while the transformer is in memory too."""
    _, H, W = latent_shape(settings, settings.sample)
    shape = (1, 1, H, W, settings.autoencoder.latent_channels)
    return _stream(settings, "decode", decode_next, shape, shape, jnp.float32, side=1)


def encode(settings: Settings) -> Program:
    """Encoding of the frames of one latent frame, as in `prepare`."""
    model = settings.autoencoder
    size = parse_size(settings.sample.size, "--config.sample.size")
    H, W = size if isinstance(size, tuple) else (size, size)
    first, then = ((1, frames, H, W, 3) for frames in (1, model.temporal_stride))
    return _stream(settings, "encode", encode_next, first, then, jnp.uint8, side=model.spatial_stride)


def _stream(settings, what, step, first, then, dtype, *, side):
    """A step of the autoencoder's stream after the first; `side`: of a latent in the input."""
    mesh, model = jax.sharding.get_mesh(), settings.autoencoder
    layout = jax.NamedSharding(mesh, spec(f". . {frame_axes(then[2] // side, then[3] // side)} ."))
    params = abstract_autoencoder(settings)
    first, then = (jax.ShapeDtypeStruct(shape, dtype, sharding=layout) for shape in (first, then))
    _, cache = jax.eval_shape(functools.partial(step, model), params, first, None)
    cache = abstract_on_mesh(cache)
    parts = {"autoencoder": params, "stream": cache, "batch": then}
    if what == "decode":
        parts["weights"] = abstract_on_mesh(abstract_model(settings))
    return Program(what, lambda: step.lower(model, params, then, cache), parts, None)


def abstract_autoencoder(settings: Settings) -> dict:
    return abstract_on_mesh(abstract_params(Autoencoder, settings.autoencoder))


def abstract_model(settings: Settings) -> dict:
    """Types of all parameters of a VideoModel, as `sample` holds them."""
    params = abstract_params(VideoModel, settings)
    params = compute_types(params, settings)
    if settings.text.weights:
        params["text_encoder"] = cast(params["text_encoder"], settings.text.dtype)
    return params


def abstract_frozen(settings: Settings) -> dict:
    """Types of `objective.frozen_params()`, whose files need not be here."""
    if settings.objective == "autoencoder":
        path = settings.loss.perceptual_weights
        return {"lpips": load_lpips(path)} if path else {}
    frozen = {}
    if settings.lora.rank:
        whole = dataclasses.replace(settings, lora=LoraSettings())
        params = abstract_trained(whole)
        frozen = compute_types(params, settings)
    if settings.objective in DISTILLATIONS:
        frozen["teacher"] = compute_types(abstract_trained(settings), settings)
    if settings.text.weights and not settings.data.embeddings:
        frozen["text_encoder"] = abstract_model(settings)["text_encoder"]
    if settings.data.autoencoder:
        frozen["autoencoder"] = abstract_params(Autoencoder, settings.autoencoder)
    return frozen


def cast(tree, dtype: str):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding), tree)


def _crop_size(settings: Settings) -> tuple[int, int]:
    """(height, width) of the crops. Raises: InputError if one number is given for both."""
    size = parse_size(settings.data.crop_size, "config.data.crop_size")
    if isinstance(size, int):
        raise InputError(f"config.data.crop_size: {settings.data.crop_size!r} must be WIDTHxHEIGHT")
    return size


def abstract_batch(settings: Settings):
    """Types of a batch of the training loop."""
    data = settings.data
    if settings.objective == "autoencoder":
        size = _crop_size(settings)
        return typed((data.batch, data.crop_frames, *size, 3), jnp.uint8, make_objective(settings).axes)
    B, N, S, I = data.batch, data.sequence_length, data.text_length, image_token_capacity(settings)
    axes = "batch tokens"
    rows = _rows(settings, B, N, B, S, I, jnp.bfloat16, axes)
    if settings.objective == REFINE:
        size = _crop_size(settings)
        shape = (B, data.clips_per_sequence, max(data.frames))
        pixels = typed((*shape, *size, 3), jnp.uint8, "batch")
        rows = rows.replace(patches=None, condition=None, pixels=pixels, low=pixels)
        rows = rows.replace(trust=typed(shape, jnp.float32, "batch"))
    if data.embeddings:
        rows = rows.replace(text=typed((B, S, settings.text.width), jnp.bfloat16, axes))
    if settings.flow.ghosts:
        rows = rows.replace(ghosts=rows.patches)
    return rows.replace(time_index=typed((B, N), jnp.int32, axes)) if settings.masks.forcing else rows


def _rows(settings, B, N, texts, S, I, dtype, axes):
    """Types of packed sequences: B sequences of N patches, `texts` texts of S tokens, I image tokens."""
    transformer, cut = settings.transformer, math.prod(settings.transformer.patch)
    more = {}
    if transformer.condition_channels:
        more["condition"] = typed((B, N, cut * transformer.condition_channels), dtype, axes)
    if transformer.image_width:
        more["image"] = typed((B, I, transformer.image_width), dtype, axes)
        more["image_segment_ids"] = typed((B, I), jnp.int32, axes)
    return PatchBatch(
        patches=typed((B, N, cut * transformer.channels), dtype, axes),
        positions=typed((B, N, 3), jnp.int32, axes),
        segment_ids=typed((B, N), jnp.int32, axes),
        conditioning_mask=typed((B, N), jnp.bool_, axes),
        text=typed((texts, S), jnp.int32, axes),
        text_segment_ids=typed((texts, S), jnp.int32, axes),
        **more,
    )


def typed(shape, dtype, axes: str):
    """The type of an array on the current mesh, concrete or abstract."""
    layout = spec(" ".join((axes.split() + ["."] * len(shape))[: len(shape)]))
    mesh = jax.sharding.get_mesh()
    mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
    return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, layout))


def split_over(x) -> list[str]:
    """The mesh axes that an array is split over."""
    spec = x.sharding.spec if getattr(x, "sharding", None) else ()
    return [axis for entry in spec if entry for axis in ([entry] if isinstance(entry, str) else entry)]


def chip_bytes(tree, sizes: dict[str, int]) -> int:
    """Bytes of a tree of types on one device of a mesh with axes of these sizes."""
    return sum(
        math.prod(x.shape) * jnp.dtype(x.dtype).itemsize // math.prod(sizes[axis] for axis in split_over(x))
        for x in jax.tree.leaves(tree)
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )
