"""Frames between the frames of a video, by linear blending, never over a cut; a refiner makes them sharp."""

from collections.abc import Iterable, Iterator

import numpy as np

from sora_jax.data.media.resize import AREA, resized

BLENDED = 0.5  # trust in a blended frame; in a real one 1
COARSE = 8  # side of the picture on which cuts are found, in pixels
CUT_LEVELS = 20.0  # of 255: mean difference of successive coarse frames that is a cut
CUT_RATIO = 3.0  # of that difference to those before and after


def is_cut(before: float | None, here: float, after: float | None) -> bool:
    """Whether a cut lies between two frames, from their difference and those of the pairs before and after."""
    beside = max((x for x in (before, after) if x is not None), default=0.0)
    return here > CUT_LEVELS and here > CUT_RATIO * beside


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of two frames [H, W, 3] uint8 at a coarse size, in levels of 255."""
    size = tuple(min(side, COARSE) for side in a.shape[:2])
    first, second = resized(np.stack([a, b]), size, AREA).astype(np.float32)
    return float(np.abs(first - second).mean())


def blended(frames: Iterable[np.ndarray], factor: int) -> Iterator[tuple[np.ndarray, float]]:
    """Frames at `factor` times the rate, each with the trust in it; memory holds three frames.

    Args:
      frames: [H, W, 3] uint8, one after the other.
      factor: at least 1; n frames become factor * n, and the last one stands still to its end.
    Yields: (frame, 1 for a real one, else BLENDED). At a cut the nearer frame is repeated.
    """
    frames = iter(frames)
    here = next(frames, None)
    after = next(frames, None)
    before_difference = None
    this_difference = difference(here, after) if factor > 1 and after is not None else None
    while here is not None:
        yield here, 1.0
        later = next(frames, None)
        if factor > 1:
            next_difference = difference(after, later) if later is not None else None
            cut = after is not None and is_cut(before_difference, this_difference, next_difference)
            for i in range(1, factor):
                yield between(here, here if after is None else after, i / factor, cut=cut), BLENDED
            before_difference, this_difference = this_difference, next_difference
        here, after = after, later


def between(first: np.ndarray, second: np.ndarray, share: float, *, cut: bool = False) -> np.ndarray:
    """A frame between two, [H, W, 3] uint8: blended, or at a cut the nearer one."""
    if cut:
        return first if share <= 0.5 else second
    mixed = (1 - share) * first.astype(np.float32) + share * second.astype(np.float32)
    return np.rint(mixed).astype(np.uint8)


def slowed(frames: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """A clip of which every `factor`-th frame is kept, and the others are blended of these.

    Args:
      frames: [F, H, W, 3] uint8.
    Returns: the same shape; the trust in each frame, [F] float32.
    """
    made = list(blended(frames[::factor], factor))[: len(frames)]
    return np.stack([frame for frame, _ in made]), np.array([trust for _, trust in made], np.float32)
