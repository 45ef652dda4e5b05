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

from sora_jax.config.schema import MASK_KINDS, MaskSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.patches import PatchBatch, clip_slices

# Sides of the rectangle of a region, as shares of the picture's.
_SIDES = (0.25, 0.75)
# Sets the draws of masks apart from others of the same seed.
_STREAM = 5
# Rows whose kinds of masks are drawn at once.
_BLOCK = 1024


def mask_kinds(settings: MaskSettings) -> dict[str, float]:
    """The share of clips of each kind of mask that is drawn at all."""
    weights = {kind: weight for kind in MASK_KINDS if (weight := getattr(settings, kind))}
    return {kind: weight / sum(weights.values()) for kind, weight in weights.items()}


@functools.cache
def _kinds(settings: MaskSettings):
    """The kinds that are drawn, and of each but the last the share of those up to it."""
    shares = mask_kinds(settings)
    return list(shares), list(itertools.accumulate(shares.values()))[:-1]


def draw_known(draw: np.random.Generator, grid: tuple[int, int, int], kind: str) -> np.ndarray:
    """Which patches of a clip are given, [f, h, w] bool; never all of them, and none of a single frame's."""
    known = np.zeros(grid, bool)
    if grid[0] == 1:
        return known
    _DRAW[kind](draw, known)
    return np.zeros(grid, bool) if known.all() else known


def drawn_kind(number: int, segment: int, settings: Settings) -> str:
    """The kind of mask that `put_masks` draws for a clip of several frames."""
    (*_, (kind, _)) = _draw_kinds(number, segment, settings)
    return kind


def put_masks(batch: PatchBatch, numbers: Sequence[int], settings: Settings) -> PatchBatch:
    """The batch (numpy) with what is given of each clip, a function of (seed, number of the row, clip in the row).

    With diffusion forcing also with the time that each patch has: those of a clip's frames follow those of the
    clips, as far as `row_levels` goes. Source: Chen et al. 2024 (arXiv 2407.01392).
    """
    masks, data = settings.masks, settings.data
    if not masks.forcing and mask_kinds(masks).keys() == {"nothing"}:
        return batch
    known, levels = batch.known.copy(), batch.segments.copy()
    for b, number in enumerate(numbers):
        used = 0
        clips = clip_slices(batch.segments[b])
        drawn = _draw_kinds(number, len(clips), settings)
        for segment, (mine, (kind, forced)) in enumerate(zip(clips, drawn, strict=True), start=1):
            if kind == "nothing" and not forced:
                continue
            positions = batch.positions[b, mine]
            grid = tuple((positions[-1] + 1).tolist())
            draw = np.random.default_rng((data.shuffle_seed, number, segment, _STREAM))
            known[b, mine] = draw_known(draw, grid, kind).reshape(-1)
            if grid[0] > 1 and forced and used + grid[0] <= masks.row_levels:
                levels[b, mine] = data.row_clips + used + 1 + positions[:, 0]
                used += grid[0]
    return batch.replace(known=known, levels=levels if masks.forcing else None)


def _draw_kinds(number, clips, settings):
    """For each clip of a row the kind of its mask, and whether its frames are to have times of their own."""
    kinds, below = _kinds(settings.masks)
    chances = _chances(settings.data.shuffle_seed, settings.data.row_clips, number // _BLOCK)[number % _BLOCK]
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


def check_levels(settings: MaskSettings, frames: int):
    """Raise InputError if a clip of so many frames, the longest, could never have a time for each."""
    if settings.forcing and settings.row_levels < frames:
        raise InputError(
            f"config.masks.row_levels: {settings.row_levels}, but the longest clip has {frames} frames of patches"
        )


def _ends(draw, known, first: bool, last: bool):
    """Some frames at the ends; at least one frame is not given."""
    f = len(known)
    head = int(draw.integers(1, max(2, f - last))) if first else 0
    tail = int(draw.integers(1, f - head)) if last and head < f - 1 else 0
    known[:head] = True
    known[f - tail :] = True


def _some(draw, known):
    f = len(known)
    known[draw.choice(f, int(draw.integers(1, f)), replace=False)] = True


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


def _first(_, known):
    known[0] = True


def _last(_, known):
    known[-1] = True


def _both(_, known):
    known[0] = True
    known[-1] = len(known) > 2  # of two frames one is to be made


def _outside(draw, known):
    known[:] = ~_rectangle(draw, known.shape)


def _inside(draw, known):
    known[:] = _rectangle(draw, known.shape)


_DRAW = {
    "nothing": lambda draw, known: None,
    "first": _first,
    "last": _last,
    "both": _both,
    "prefix": lambda draw, known: _ends(draw, known, True, False),
    "suffix": lambda draw, known: _ends(draw, known, False, True),
    "ends": lambda draw, known: _ends(draw, known, True, True),
    "random": _some,
    "outside": _outside,
    "inside": _inside,
}
