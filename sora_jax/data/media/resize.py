"""Frames at another size, by Pillow: bicubic enlarging, mean over areas."""

import numpy as np
from PIL import Image

BICUBIC, LANCZOS, AREA = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX


def resized(frames: np.ndarray, size: tuple[int, int], kernel: Image.Resampling) -> np.ndarray:
    """Frames [F, H, W, 3] at another size, in their type: uint8, or float32, which is not clipped.

    Args:
      size: (height, width).
    """
    H, W = size
    if frames.shape[1:3] == (H, W):
        return frames
    if frames.dtype == np.uint8:
        return np.stack([np.asarray(Image.fromarray(frame).resize((W, H), kernel)) for frame in frames])
    return np.stack(
        [
            np.stack(
                [
                    np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((W, H), kernel))
                    for plane in np.moveaxis(frame, -1, 0)
                ],
                axis=-1,
            )
            for frame in frames
        ]
    )


def padded(frames: np.ndarray, multiple: tuple[int, int]) -> np.ndarray:
    """Frames [F, H, W, 3] with their last rows and columns repeated up to the next multiple."""
    pads = [(0, -side % m) for side, m in zip(frames.shape[1:3], multiple, strict=True)]
    return np.pad(frames, ((0, 0), *pads, (0, 0)), mode="edge") if any(map(any, pads)) else frames
