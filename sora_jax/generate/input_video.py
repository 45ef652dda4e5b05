"""Given videos and pictures, brought to the size and the rate of the video that is made; what was done is told."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import rich.console
from PIL import Image

from sora_jax.core.errors import InputError
from sora_jax.data.prepare.decode import Video, count_frames, probe, read_frames


@dataclasses.dataclass(frozen=True)
class Footage:
    """A given video as it is used.

    size: (height, width); fps: frames a second; frames: how many there are at that rate.
    """

    video: Video
    size: tuple[int, int]
    fps: float
    frames: int

    @property
    def path(self) -> pathlib.Path:
        return self.video.path

    def read(self, start: int = 0, frames: int | None = None) -> Iterator[np.ndarray]:
        """Frames from `start` on, [H, W, 3] uint8, one by one."""
        made = read_frames(self.video, [self.size], fps=self.fps, start=start, frames=frames)
        return (frame for (frame,) in made)


def open_footage(
    path: pathlib.Path, size: tuple[int, int] | None, fps: float, least: int, console: rich.console.Console
) -> Footage:
    """A video or picture at this size (height, width; None: its own) and rate; says what that changes.

    Raises: InputError if it can't be read, or has fewer than `least` frames.
    """
    video = probe(path)
    own = (video.height, video.width)
    footage = Footage(video, size or own, fps, count_frames(video, fps))
    if footage.frames < least:
        raise InputError(
            f"{path}: {video.duration:.2f} s, {footage.frames} frames at {fps:g} a second; {least} are needed"
        )
    changes = []
    if footage.size != own:
        H, W = footage.size
        changes.append(f"{video.width}x{video.height}, scaled to cover {W}x{H} and cropped around the centre")
    if video.frames > 1 and abs(video.fps - fps) > 0.01:
        changes.append(f"{video.frames} frames at {video.fps:.4g} a second, taken as {footage.frames} at {fps:g}")
    if changes:
        console.print(f"note: {path}: {'; '.join(changes)}", highlight=False, soft_wrap=True)
    return footage


def read_picture(path: pathlib.Path, size: tuple[int, int], console: rich.console.Console) -> np.ndarray:
    """A picture, or the first frame of a video, [H, W, 3] uint8. Raises: InputError if it can't be read."""
    return next(open_footage(path, size, 1.0, 1, console).read(0, 1))


def read_mask(path: pathlib.Path, video: Video, size: tuple[int, int]) -> np.ndarray:
    """Which pixels a mask leaves as they are, [H, W] bool: the dark ones, brought where the video's are.

    Args:
      path: a picture of the video's own size.
      size: (height, width) to which the video is brought.
    Raises: InputError if it is of another size, or leaves nothing, or everything.
    """
    mask = probe(path)
    if (mask.width, mask.height) != (video.width, video.height):
        raise InputError(
            f"--mask={path}: {mask.width}x{mask.height}, but {video.path} is {video.width}x{video.height}"
        )
    (picture,) = read_frames(mask, [size], fps=1.0, frames=1)
    known = np.asarray(Image.fromarray(picture[0]).convert("L")) < 128
    if known.all() or not known.any():
        what = "nothing is bright in it, so nothing would be made" if known.all() else "all of it is bright"
        raise InputError(f"--mask={path}: {what}; white is made anew, black stays")
    return known
