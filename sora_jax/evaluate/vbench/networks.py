"""VBench's networks on frames: transforms, and batches of one compiled size, split over the devices of the mesh.

The transforms are those of VBench's code: none smooths before it scales down, and CLIP's cubic one is not clipped.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.core.mesh import num_shards, spec
from sora_jax.data.conditioning_frames import CLIP_MEAN, CLIP_STD
from sora_jax.models.layers.params import bind, module_graph
from sora_jax.models.metric_backbones import Clip
from sora_jax.models.vbench import amt, raft
from sora_jax.models.vbench.musiq import Musiq
from sora_jax.models.vbench.resize import pad_to_multiple, resize, short_side
from sora_jax.models.vbench.vit import Dino, Viclip

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIDE = 224  # of pictures for CLIP and DINO
MUSIQ_SIDE = 512  # longer side of pictures for MUSIQ, at most


def in_batches(function: Callable, arrays, *, rows: int) -> np.ndarray:
    """The function on arrays [N, ...], so many rows on each device at a time.

    Args:
      function: (batches [rows * devices, ...], ...) -> [rows * devices, ...].
    """
    size = rows * num_shards("batch", jax.sharding.get_mesh().shape)
    made = []
    for first in range(0, len(arrays[0]), size):
        batches = [array[first : first + size] for array in arrays]
        count = len(batches[0])
        padded = [np.concatenate([batch, np.repeat(batch[-1:], size - count, axis=0)]) for batch in batches]
        made.append(np.asarray(function(*padded))[:count])
    return np.concatenate(made)


def _network(function):
    """A jitted function (settings, params, frames [B, H, W, 3] uint8, ...), in full float32 on all backends."""

    @functools.partial(jax.jit, static_argnums=0)
    def call(settings, params, *frames):
        with jax.default_matmul_precision("highest"):
            rows = (jax.reshard(x, spec("batch . . .")).astype(jnp.float32) for x in frames)
            return function(settings, params, *rows)

    return call


@_network
def dino_features(settings, params, frames):
    """[B, E] of frames, each scaled as a whole."""
    x = resize(frames, short_side(*frames.shape[1:3], SIDE)) / 255
    return bind(Dino, settings, params)((x - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD))


@_network
def clip_features(settings, params, frames):
    """Unit vectors [B, E] of the middle squares of frames."""
    return bind(Clip, settings, params).encode_images(_clip_pictures(frames))


@_network
def viclip_features(settings, params, frames):
    """Unit vectors [B, E] of videos, which lie one after the other in the frames."""
    shape = (-1, settings.frames, SIDE, SIDE, 3)
    x = jnp.reshape(_clip_pictures(frames), shape, out_sharding=spec("batch . . . ."))
    return bind(Viclip, settings, params).encode_videos(x)


@functools.partial(jax.jit, static_argnums=0)
def viclip_text(settings, params, tokens, ends):
    """Unit vectors [B, E] of texts."""
    with jax.default_matmul_precision("highest"):
        rows = jax.reshard(tokens, spec("batch .")), jax.reshard(ends, spec("batch"))
        return bind(Viclip, settings, params).encode_texts(*rows)


@_network
def musiq_scores(settings, params, frames):
    """Scores in about 0 ... 100, [B]."""
    H, W = frames.shape[1:3]
    if max(H, W) > MUSIQ_SIDE:
        scale = MUSIQ_SIDE / max(H, W)
        frames = resize(frames, (int(scale * H), int(scale * W)))
    return bind(Musiq, settings, params)(frames / 255)


@_network
def long_vectors(settings, params, first, second):
    """Mean length of the longest vectors of the flows from one frame to the next, in pixels.

    Returns: [B, 2]: of the longest 5 % and 2 %. As in VBench's code, the flow's padding counts.
    """

    def longest(network, first, second):
        flow = network(*(pad_to_multiple(x, raft.STRIDE)[0] for x in (first, second)))
        length = jnp.sort(jnp.linalg.norm(flow, axis=-1).reshape(len(flow), -1), axis=1)
        counts = [max(1, int(length.shape[1] * share)) for share in (0.05, 0.02)]
        return jnp.stack([jnp.mean(length[:, -count:], axis=1) for count in counts], axis=1)

    return _per_device(raft.Raft, settings, params, longest, first, second)


@_network
def interpolation_errors(settings, params, first, middle, second):
    """Mean absolute difference between a frame and the one that AMT makes of its neighbours, in levels, [B]."""

    def error(network, first, middle, second):
        first, rest = pad_to_multiple(first / 255, amt.STRIDE)
        made = network(first, pad_to_multiple(second / 255, amt.STRIDE)[0])[:, *rest]
        return jnp.mean(jnp.abs(jnp.floor(255 * made) - middle), axis=(1, 2, 3))

    return _per_device(amt.Amt, settings, params, error, first, middle, second)


def _per_device(module_class, settings, params, function, *arrays):
    """function(module, *arrays [B, ...]); each device takes its rows with all parameters, and sends nothing."""
    module_graph(module_class, settings)  # found outside of what follows, where arrays have no layout
    rows = spec("batch")

    def run(params, *arrays):
        return function(bind(module_class, settings, params), *arrays)

    # Without the check: a loop may begin with a constant, which is the same on all devices.
    specs = (jax.P(), *(rows for _ in arrays))
    return jax.shard_map(run, in_specs=specs, out_specs=rows, check_vma=False)(params, *arrays)


def _clip_pictures(frames):
    """[B, H, W, 3] in [0, 255] -> normalised squares [B, SIDE, SIDE, 3]."""
    x = resize(frames, short_side(*frames.shape[1:3], SIDE), "bicubic")
    top, left = (round((size - SIDE) / 2) for size in x.shape[1:3])
    x = x[:, top : top + SIDE, left : left + SIDE] / 255
    return (x - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_STD)
