"""Motion of a video: flicker, seams between latent frames, drift from beginning to end."""

from collections.abc import Sequence

import numpy as np

from sora_jax.core.errors import InputError

MEASURES = ("motion", "flicker", "seam", "drift", "sharpness")
STILL_BELOW = 0.25  # levels of 255: a smaller change of a frame is no motion


def measure_motion(video: np.ndarray, stride: int) -> dict[str, float | None]:
    """Motion of one video, in levels of 255 unless stated otherwise.

    Args:
      video: [F, H, W, 3] uint8, at least 3 frames.
      stride: frames in a latent frame; the first latent frame has one.
    Returns:
      motion: mean absolute difference of successive frames.
      flicker: half the absolute second difference in time, median over pixels, mean over frames: 0 for steady
        change and for motion in less than half of the picture; v for a picture that alternates by v.
      seam: motion across the borders of latent frames over motion within them; best is 1. None if nothing moves
        within a latent frame, or none has two frames.
      drift: distance in RGB between the mean colours of the first and the last quarter.
      sharpness: mean gradient of the last quarter over that of the first; best is 1. None for flat pictures.
    Raises: InputError if the video is too short.
    """
    if len(video) < 3:
        raise InputError(f"motion needs 3 frames or more, not {len(video)}")
    x = video.astype(np.float32)
    steps = np.abs(np.diff(x, axis=0))
    change = steps.mean(axis=(1, 2, 3))
    second = np.abs(x[2:] - 2 * x[1:-1] + x[:-2]).mean(axis=-1) / 2
    border = np.arange(len(change)) % stride == 0  # between frames 0 and 1, stride and stride + 1, ...
    within = change[~border].mean() if (~border).any() else 0.0
    quarter = max(1, len(video) // 4)
    colours = [part.mean(axis=(0, 1, 2)) for part in (x[:quarter], x[-quarter:])]
    first, last = (gradient(part) for part in (x[:quarter], x[-quarter:]))
    return {
        "motion": float(change.mean()),
        "flicker": float(np.median(second, axis=(1, 2)).mean()),
        "seam": float(change[border].mean() / within) if within > STILL_BELOW else None,
        "drift": float(np.linalg.norm(colours[1] - colours[0])),
        "sharpness": float(last / first) if first > STILL_BELOW else None,
    }


def gradient(x: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels, down and across, of [F, H, W, 3]."""
    return float(np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=2)).mean())


def mean_motion(found: Sequence[dict[str, float | None]]) -> dict:
    """Means of `measure_motion` over the videos that have a value, and "videos", the number of all."""
    means: dict[str, float | None] = {}
    for name in MEASURES:
        there = [values[name] for values in found if values[name] is not None]
        means[name] = float(np.mean(there)) if there else None
    return means | {"videos": len(found)}
