"""Pictures of finished videos: a frame of the middle, and a sheet of frames."""

import functools
import io
import pathlib

import numpy as np
from PIL import Image

from sora_jax.data.media.video import probe, read_clip, read_frames

THUMBNAIL_SIDE = 512  # pixels of the longer side, at most
SHEET_SIDE = 320  # of a frame of the sheet
SHEET = 5  # rows and columns, at most


def thumbnail(path: pathlib.Path) -> bytes:
    """The middle frame, as WebP."""
    return _picture(path, path.stat().st_mtime_ns, "thumbnail")


def spritesheet(path: pathlib.Path) -> bytes:
    """Up to 5 x 5 frames at equal distances, row by row, as JPEG."""
    return _picture(path, path.stat().st_mtime_ns, "spritesheet")


@functools.lru_cache(maxsize=64)
def _picture(path: pathlib.Path, modified: int, kind: str) -> bytes:
    video = probe(path)
    if kind == "thumbnail":
        size = _fitted(video, THUMBNAIL_SIDE)
        frame = read_clip(video, size, fps=video.fps or 1, frames=1, start=video.frames // 2)[0]
        return encoded(frame, "webp")
    size = _fitted(video, SHEET_SIDE)
    count = min(SHEET * SHEET, video.frames)
    wanted = set(np.linspace(0, video.frames - 1, count).round().astype(int).tolist())
    frames = [
        frame
        for number, (frame,) in enumerate(read_frames(video, [size], fps=video.fps or 1, frames=video.frames))
        if number in wanted
    ]
    columns = min(SHEET, len(frames))
    frames += [np.zeros_like(frames[0])] * (-len(frames) % columns)
    rows = [np.concatenate(frames[i : i + columns], axis=1) for i in range(0, len(frames), columns)]
    return encoded(np.concatenate(rows), "jpeg")


def _fitted(video, side: int) -> tuple[int, int]:
    """(height, width) of the video's frames, made smaller so that none is longer than `side`."""
    scale = min(1.0, side / max(video.width, video.height))
    return max(1, round(video.height * scale)), max(1, round(video.width * scale))


def encoded(frame: np.ndarray, kind: str) -> bytes:
    """A frame [H, W, 3] uint8 as a file of that format."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, kind, quality=85)
    return file.getvalue()
