"""What of a clip is given in training: drawn per clip, as patches that are known.

A model that has learned with all of these masks makes videos from text, from a first or a last frame, goes on
with a video in both directions, joins two, and fills regions: a task is a mask. Frames are those of the grid
of patches; the first one holds one frame of the video, the later ones as many as the autoencoder folds.
"""

import bisect
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from sora_jax.config.schema import MaskSettings, Settings
from sora_jax.config.training import CONDITIONING_TASKS
from sora_jax.core.errors import InputError
from sora_jax.core.patches import PatchBatch, clip_slices

# Sides of the rectangle of a region, as shares of the picture's.
_SIDES = (0.25, 0.75)
# Sets the draws of masks apart from others of the same seed.
_STREAM = 5
# PackedSequences whose kinds of masks are drawn at once.
_BLOCK = 1024


def conditioning_tasks(settings: MaskSettings) -> dict[str, float]:
    """The share of clips of each kind of mask that is drawn at all."""
    weights = {kind: weight for kind in CONDITIONING_TASKS if (weight := getattr(settings, kind))}
    return {kind: weight / sum(weights.values()) for kind, weight in weights.items()}


@functools.cache
def _kinds(settings: MaskSettings):
    """The kinds that are drawn, and of each but the last the share of those up to it."""
    shares = conditioning_tasks(settings)
    return list(shares), list(itertools.accumulate(shares.values()))[:-1]


def draw_conditioning_mask(draw: np.random.Generator, grid: tuple[int, int, int], kind: str) -> np.ndarray:
    """Which patches of a clip are given, [f, h, w] bool; never all of them, and none of a single frame's."""
    conditioning_mask = np.zeros(grid, bool)
    if grid[0] == 1:
        return conditioning_mask
    _DRAW[kind](draw, conditioning_mask)
    return np.zeros(grid, bool) if conditioning_mask.all() else conditioning_mask


def drawn_kind(number: int, segment: int, settings: Settings) -> str:
    """The kind of mask that `draw_conditioning_masks` draws for a clip of several frames."""
    (*_, (kind, _)) = _draw_kinds(number, segment, settings)
    return kind


def draw_conditioning_masks(batch: PatchBatch, numbers: Sequence[int], settings: Settings) -> PatchBatch:
    """The batch (numpy) with what is given of each clip, a function of (seed, number of the row, clip in the row).

    With diffusion forcing also with the time that each patch has: those of a clip's frames follow those of the
    clips, as far as `times_per_sequence` goes. Source: Chen et al. 2024 (arXiv 2407.01392).
    """
    masks, data = settings.masks, settings.data
    if not masks.forcing and conditioning_tasks(masks).keys() == {"text"}:
        return batch
    conditioning_mask, time_index = batch.conditioning_mask.copy(), batch.segment_ids.copy()
    for b, number in enumerate(numbers):
        used = 0
        clips = clip_slices(batch.segment_ids[b])
        drawn = _draw_kinds(number, len(clips), settings)
        for segment, (mine, (kind, forced)) in enumerate(zip(clips, drawn, strict=True), start=1):
            if kind == "text" and not forced:
                continue
            positions = batch.positions[b, mine]
            grid = tuple((positions[-1] + 1).tolist())
            draw = np.random.default_rng((data.shuffle_seed, number, segment, _STREAM))
            conditioning_mask[b, mine] = draw_conditioning_mask(draw, grid, kind).reshape(-1)
            if grid[0] > 1 and forced and used + grid[0] <= masks.times_per_sequence:
                time_index[b, mine] = data.clips_per_sequence + used + 1 + positions[:, 0]
                used += grid[0]
    return batch.replace(conditioning_mask=conditioning_mask, time_index=time_index if masks.forcing else None)


def _draw_kinds(number, clips, settings):
    """For each clip of a row the kind of its mask, and whether its frames are to have times of their own."""
    kinds, below = _kinds(settings.masks)
    chances = _chances(settings.data.shuffle_seed, settings.data.clips_per_sequence, number // _BLOCK)[
        number % _BLOCK
    ]
    return [
        (kinds[bisect.bisect_right(below, first)], second < settings.masks.forcing)
        for first, second in chances[:clips].tolist()
    ]


@functools.lru_cache(maxsize=4)
def _chances(seed, clips, block):
    """Two numbers in [0, 1) for each clip of the rows of a block, [_BLOCK, clips, 2].

    Most clips are given nothing, and that is all they need: a generator for each takes longer than its record.
    """
    return np.random.default_rng((seed, block, _STREAM)).random((_BLOCK, clips, 2))


def check_frame_times(settings: MaskSettings, frames: int):
    """Raise InputError if a clip of so many frames, the longest, could never have a time for each."""
    if settings.forcing and settings.times_per_sequence < frames:
        raise InputError(
            f"config.masks.times_per_sequence: {settings.times_per_sequence}, but the longest clip "
            f"has {frames} frames of patches"
        )


def _ends(draw, conditioning_mask, first: bool, last: bool):
    """Some frames at the ends; at least one frame is not given."""
    f = len(conditioning_mask)
    head = int(draw.integers(1, max(2, f - last))) if first else 0
    tail = int(draw.integers(1, f - head)) if last and head < f - 1 else 0
    conditioning_mask[:head] = True
    conditioning_mask[f - tail :] = True


def _some(draw, conditioning_mask):
    f = len(conditioning_mask)
    conditioning_mask[draw.choice(f, int(draw.integers(1, f)), replace=False)] = True


def _rectangle(draw, grid):
    """A rectangle of the picture, the same in all frames, [h, w] bool."""
    inside = np.zeros(grid[1:], bool)
    spans = []
    for side in inside.shape:
        size = min(side, max(1, round(side * draw.uniform(*_SIDES))))
        start = int(draw.integers(0, side - size + 1))
        spans.append(slice(start, start + size))
    inside[tuple(spans)] = True
    return inside


def _first(_, conditioning_mask):
    conditioning_mask[0] = True


def _last(_, conditioning_mask):
    conditioning_mask[-1] = True


def _both(_, conditioning_mask):
    conditioning_mask[0] = True
    conditioning_mask[-1] = len(conditioning_mask) > 2  # of two frames one is to be made


def _outside(draw, conditioning_mask):
    conditioning_mask[:] = ~_rectangle(draw, conditioning_mask.shape)


def _inside(draw, conditioning_mask):
    conditioning_mask[:] = _rectangle(draw, conditioning_mask.shape)


_DRAW = {
    "text": lambda draw, conditioning_mask: None,
    "first_frame": _first,
    "last_frame": _last,
    "first_last": _both,
    "prefix": lambda draw, conditioning_mask: _ends(draw, conditioning_mask, True, False),
    "suffix": lambda draw, conditioning_mask: _ends(draw, conditioning_mask, False, True),
    "prefix_suffix": lambda draw, conditioning_mask: _ends(draw, conditioning_mask, True, True),
    "random_frames": _some,
    "inpaint": _outside,
    "outpaint": _inside,
}
