"""Videos through the autoencoder as streams: any length, in the memory of one chunk, or of one tile of it.

Two compiled programs, of the first chunk and of every later one, serve every length.
"""

import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.config.schema import AutoencoderSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import spec
from sora_jax.models.autoencoder.model import Autoencoder, check_latents, check_video
from sora_jax.models.autoencoder.pixels import frame_axes
from sora_jax.models.layers.params import bind


def decode_stream(
    params: dict, settings: AutoencoderSettings, latents, *, chunk: int = 1, tile: int = 0
) -> Iterator[np.ndarray]:
    """The frames of a video, as a stream.

    Args:
      latents: normalised, [F', H', W', C]: an array, or any iterable of frames [H', W', C].
      chunk: latent frames at a time.
      tile: rows and columns of latents at a time, for a device too small for whole frames; tiles overlap and blend
        over a quarter of their side. 0: whole frames.
    Yields: the next frames, [F, H, W, 3] uint8.
    Raises: InputError if a frame does not fit or is not finite.
    """
    chunks = _chunks(latents, chunk, functools.partial(_check_latents, settings))
    step = functools.partial(_step, decode_next, settings, params, 1)
    yield from _run(_tiled(step, tile, 1, settings.spatial_stride) if tile else step, chunks)


def decode_more(params: dict, settings: AutoencoderSettings, latents, cache=None, *, tile: int = 0):
    """The next frames of a video whose latents are generated while it is decoded.

    Args:
      latents: normalised, [F', H', W', C].
      cache: of the call before; None if the video begins.
      tile: as for `decode_stream`, the same in all calls.
    Returns: frames, [F, H, W, 3] uint8; cache.
    """
    made, step = [], functools.partial(_step, decode_next, settings, params, 1)
    step = _tiled(step, tile, 1, settings.spatial_stride) if tile else step
    for chunk in _chunks(latents, 1, functools.partial(_check_latents, settings)):
        frames, cache = step(chunk, cache)
        made.append(np.asarray(frames)[0])
    return np.concatenate(made), cache


def encode_stream(
    params: dict, settings: AutoencoderSettings, frames, *, chunk: int = 1, tile: int = 0
) -> Iterator[np.ndarray]:
    """The latents of a video, as a stream.

    Args:
      frames: [F, H, W, 3] uint8, or float in [-1, 1]: an array, or any iterable of frames [H, W, 3].
      chunk: latent frames at a time.
      tile: rows and columns of latents at a time, as for `decode_stream`. 0: whole frames.
    Yields: the next normalised latents (the posterior's mean), [F', H', W', C] float32.
    Raises: InputError if a frame does not fit or is not finite, or at the end if the number of frames does not.
    """
    side = settings.spatial_stride
    chunks = _chunks(frames, chunk * settings.temporal_stride, functools.partial(_check_frames, settings))
    step = functools.partial(_step, encode_next, settings, params, side)
    yield from _run(_tiled(step, tile, side, 1) if tile else step, chunks)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def decode_next(settings, params, latents, cache):
    """(frames uint8, cache) of the next chunk of a video, from latents [B, f, h, w, C]."""
    model = bind(Autoencoder, settings, params)
    video, cache = model.decode_chunk(model.from_latents(latents), cache)
    return _replicated(jnp.rint(jnp.clip(video * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)), cache


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def encode_next(settings, params, frames, cache):
    """(latents, cache) of the next chunk of a video, from frames, uint8 or float in [-1, 1]."""
    model = bind(Autoencoder, settings, params)
    if frames.dtype == jnp.uint8:
        frames = frames.astype(jnp.float32) / 127.5 - 1
    (mean, _), cache = model.encode_chunk(frames, cache)
    return _replicated(model.to_latents(mean)), cache


def _replicated(x):
    return x if jax.typeof(x).sharding.mesh.empty else jax.reshard(x, jax.P())


def _step(program, settings, params, size, chunk, cache):
    """Run the program on the current mesh, frames split as `frame_axes` says; `size`: side of a latent in them."""
    mesh = jax.sharding.get_mesh()
    if not mesh.empty:
        axes = frame_axes(*(side // size for side in chunk.shape[2:4]))
        chunk = jax.device_put(chunk, jax.NamedSharding(mesh, spec(f". . {axes} .")))
    return program(settings, params, chunk, cache)


def _run(step, chunks):
    made, cache = None, None
    for chunk in chunks:
        before, (made, cache) = made, step(chunk, cache)
        if before is not None:  # copied to the host while the next is computed
            yield np.asarray(before)[0]
    if made is None:
        raise InputError("a video of no frames: at least one is needed")
    yield np.asarray(made)[0]


def _tiled(step, tile, size_in, size_out):
    """The step, tile by tile; the tiles' caches are kept in the host's memory.

    Args:
      tile: side of a tile, in latents.
      size_in, size_out: side of a latent in the step's input and output.
    """
    if tile < 4:
        raise InputError(f"tile: {tile} latents are too few to blend; at least 4 are needed, 32 are usual")

    def run(chunk, caches):
        H, W = (side // size_in for side in chunk.shape[2:4])
        tiles = list(itertools.product(spans(H, tile), spans(W, tile)))
        total, weight, kept = None, np.zeros((H * size_out, W * size_out, 1), np.float32), []
        for (rows, columns), cache in zip(tiles, caches or [None] * len(tiles), strict=True):
            made, cache = step(chunk[:, :, _scaled(rows, size_in), _scaled(columns, size_in)], cache)
            kept.append(jax.device_get(cache))
            if total is None:
                total = np.zeros((*made.shape[:2], *weight.shape[:2], made.shape[-1]), np.float32)
            share = fade(rows, H, size_out)[:, None, None] * fade(columns, W, size_out)[:, None]
            place = np.s_[_scaled(rows, size_out), _scaled(columns, size_out)]
            total[:, :, *place] += share * np.asarray(made)
            weight[place] += share
        blended = total / weight
        return (np.rint(blended) if made.dtype == np.uint8 else blended).astype(made.dtype), kept

    return run


def spans(side, tile):
    """Slices of the tiles along a side: evenly spaced, overlapping by at least a quarter."""
    tile = min(tile, side)
    overlap = tile // 4
    count = max(1, math.ceil((side - overlap) / (tile - overlap)))
    begins = [round(i * (side - tile) / max(1, count - 1)) for i in range(count)]
    return [slice(begin, begin + tile) for begin in begins]


def _scaled(span, size):
    return slice(span.start * size, span.stop * size)


def fade(span, side, size):
    """Weights of a tile's pixels along a side: they fall to 0 over a quarter towards other tiles."""
    n = (span.stop - span.start) * size
    place, slope = np.arange(n) + 0.5, n / 4
    rise = place / slope if span.start > 0 else np.ones(n)
    fall = (n - place) / slope if span.stop < side else np.ones(n)
    return np.minimum(np.minimum(rise, fall), 1).astype(np.float32)


def _chunks(frames, size, check):
    """The first frame, then `size` frames at a time, [1, F, H, W, C], checked."""
    shape, count = None, 0
    frames = iter(frames)
    while chunk := [np.asarray(frame) for frame in itertools.islice(frames, size if count else 1)]:
        for i, frame in enumerate(chunk):
            if frame.shape != (shape := shape or frame.shape):
                raise InputError(f"frame {count + i}: of shape {frame.shape} after frames of {shape}")
        check(chunk, count)
        count += len(chunk)
        yield np.stack(chunk)[None]


def _check_frames(settings, frames, before):
    """Raise InputError unless these frames, after `before` others, can be encoded."""
    dtype = np.dtype(np.float32) if frames[0].dtype == np.uint8 else frames[0].dtype
    check_video((1, before + len(frames), *frames[0].shape), dtype, settings)
    _check_finite(frames, before, "frame")
    # A resize may overshoot [-1, 1]; this is to catch pixels of 0 to 255 as floats.
    if frames[0].dtype != np.uint8 and max(np.abs(frame).max() for frame in frames) > 2:
        raise InputError(f"frame {before}: values beyond 2; float in [-1, 1] is needed, or uint8")


def _check_latents(settings, frames, before):
    check_latents((1, len(frames), *frames[0].shape), frames[0].dtype, settings)
    _check_finite(frames, before, "latent frame")


def _check_finite(frames, before, name):
    for i, frame in enumerate(frames):
        if not np.isfinite(np.asarray(frame, np.float32)).all():
            raise InputError(f"{name} {before + i}: holds NaN or infinity")
