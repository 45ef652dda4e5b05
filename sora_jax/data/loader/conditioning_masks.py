"""Draw the conditioning masks of training: which patches of each clip are given, by a random task per clip.

A model trained on all tasks makes videos from text, from a first or last frame, extends a video in both
directions, joins two, and fills regions. Frames are those of the patch grid: the first one holds one frame of
the video, each later one a temporal stride of them.
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

# Height and width of the rectangle of a region, as a share of the picture's: from, to.
_SIDES = (0.25, 0.75)
# Separates these random draws from others of the same seed.
_STREAM = 5
# Sequences whose tasks are drawn at once.
_BLOCK = 1024


def conditioning_tasks(settings: MaskSettings) -> dict[str, float]:
    """The share of the clips of each task, without tasks of weight 0."""
    weights = {task: weight for task in CONDITIONING_TASKS if (weight := getattr(settings, task))}
    return {task: weight / sum(weights.values()) for task, weight in weights.items()}


@functools.cache
def _cumulative_shares(settings: MaskSettings):
    """The tasks that are drawn, and the cumulative shares of all but the last."""
    shares = conditioning_tasks(settings)
    return list(shares), list(itertools.accumulate(shares.values()))[:-1]


def draw_conditioning_mask(draw: np.random.Generator, grid: tuple[int, int, int], task: str) -> np.ndarray:
    """Which patches of a clip are given, [f, h, w] bool: never all of them, and none of a single frame."""
    mask = np.zeros(grid, bool)
    if grid[0] == 1:
        return mask
    _DRAW[task](draw, mask)
    return np.zeros(grid, bool) if mask.all() else mask


def drawn_task(number: int, segment: int, settings: Settings) -> str:
    """The task that `draw_conditioning_masks` draws for a clip, `segment` of sequence `number`."""
    (*_, (task, _)) = _draw_tasks(number, segment, settings)
    return task


def draw_conditioning_masks(batch: PatchBatch, numbers: Sequence[int], settings: Settings) -> PatchBatch:
    """The batch with a conditioning mask for each clip, a function of (seed, sequence, clip in the sequence).

    With diffusion forcing, patches of the chosen clips get a time index for each frame: after those of the clips,
    as long as config.masks.times_per_sequence allows.

    Args:
      batch: of numpy arrays.
      numbers: of its sequences.
    Source: Chen et al. 2024 (arXiv 2407.01392), for diffusion forcing.
    """
    masks, data = settings.masks, settings.data
    if not masks.forcing and conditioning_tasks(masks).keys() == {"text"}:
        return batch
    conditioning_mask, time_index = batch.conditioning_mask.copy(), batch.segment_ids.copy()
    for b, number in enumerate(numbers):
        used = 0
        clips = clip_slices(batch.segment_ids[b])
        drawn = _draw_tasks(number, len(clips), settings)
        for segment, (mine, (task, forced)) in enumerate(zip(clips, drawn, strict=True), start=1):
            if task == "text" and not forced:
                continue
            positions = batch.positions[b, mine]
            grid = tuple((positions[-1] + 1).tolist())
            draw = np.random.default_rng((data.shuffle_seed, number, segment, _STREAM))
            conditioning_mask[b, mine] = draw_conditioning_mask(draw, grid, task).reshape(-1)
            if grid[0] > 1 and forced and used + grid[0] <= masks.times_per_sequence:
                time_index[b, mine] = data.clips_per_sequence + used + 1 + positions[:, 0]
                used += grid[0]
    return batch.replace(conditioning_mask=conditioning_mask, time_index=time_index if masks.forcing else None)


def _draw_tasks(number, clips, settings):
    """For each clip of a sequence: its task, and whether its frames have a time each."""
    tasks, below = _cumulative_shares(settings.masks)
    data, (block, place) = settings.data, divmod(number, _BLOCK)
    chances = _chances(data.shuffle_seed, data.clips_per_sequence, block)[place]
    return [
        (tasks[bisect.bisect_right(below, first)], second < settings.masks.forcing)
        for first, second in chances[:clips].tolist()
    ]


@functools.lru_cache(maxsize=4)
def _chances(seed, clips, block):
    """Two numbers in [0, 1) for each clip of the sequences of a block, [_BLOCK, clips, 2].

    Most clips need no more random numbers, and a generator for each would take longer than reading its record.
    """
    return np.random.default_rng((seed, block, _STREAM)).random((_BLOCK, clips, 2))


def check_frame_times(settings: MaskSettings, frames: int):
    """Raise InputError if the longest clip, of so many frames, can never have a time for each frame."""
    if settings.forcing and settings.times_per_sequence < frames:
        raise InputError(
            f"config.masks.times_per_sequence: {settings.times_per_sequence}, but the longest clip "
            f"has {frames} frames of patches"
        )


def _ends(draw, mask, first: bool, last: bool):
    """Give some frames at the ends, but not all."""
    f = len(mask)
    head = int(draw.integers(1, max(2, f - last))) if first else 0
    tail = int(draw.integers(1, f - head)) if last and head < f - 1 else 0
    mask[:head] = True
    mask[f - tail :] = True


def _random_frames(draw, mask):
    f = len(mask)
    mask[draw.choice(f, int(draw.integers(1, f)), replace=False)] = True


def _rectangle(draw, grid):
    """A random rectangle of the picture, [h, w] bool."""
    inside = np.zeros(grid[1:], bool)
    spans = []
    for side in inside.shape:
        size = min(side, max(1, round(side * draw.uniform(*_SIDES))))
        start = int(draw.integers(0, side - size + 1))
        spans.append(slice(start, start + size))
    inside[tuple(spans)] = True
    return inside


def _first(_, mask):
    mask[0] = True


def _last(_, mask):
    mask[-1] = True


def _first_and_last(_, mask):
    mask[0] = True
    mask[-1] = len(mask) > 2  # of two frames, one remains to be made


def _outside(draw, mask):
    mask[:] = ~_rectangle(draw, mask.shape)


def _inside(draw, mask):
    mask[:] = _rectangle(draw, mask.shape)


_DRAW = {
    "text": lambda draw, mask: None,
    "first_frame": _first,
    "last_frame": _last,
    "first_last": _first_and_last,
    "prefix": lambda draw, mask: _ends(draw, mask, True, False),
    "suffix": lambda draw, mask: _ends(draw, mask, False, True),
    "prefix_suffix": lambda draw, mask: _ends(draw, mask, True, True),
    "random_frames": _random_frames,
    "inpaint": _outside,
    "outpaint": _inside,
}
