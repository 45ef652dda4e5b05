"""Videos and pictures that the user gives, brought to the size and frame rate of the video that is made."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import rich.console
from PIL import Image

from sora_jax.core.errors import InputError
from sora_jax.data.media.options import Options
from sora_jax.data.media.video import Video, count_frames, probe, read_frames

BRIGHT = 128  # from this grey level on, a pixel of a mask is white


@dataclasses.dataclass(frozen=True)
class InputVideo:
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
        resized = read_frames(self.video, [self.size], fps=self.fps, start=start, frames=frames)
        return (frame for (frame,) in resized)


def open_input_video(
    path: pathlib.Path,
    size: tuple[int, int] | None,
    fps: float,
    least: int,
    options: Options,
    console: rich.console.Console,
) -> InputVideo:
    """A video or picture at this size and rate; prints what that changes.

    Args:
      size: (height, width); None: the video's own.
      least: frames that are needed.
    Raises: InputError if it can't be read, or has fewer than `least` frames.
    """
    video = probe(path, options)
    own = (video.height, video.width)
    opened = InputVideo(video, size or own, fps, count_frames(video, fps))
    if opened.frames < least:
        raise InputError(
            f"{path}: {video.duration:.2f} s, {opened.frames} frames at {fps:g} a second; {least} are needed"
        )
    changes = list(video.notes)
    if opened.size != own:
        H, W = opened.size
        changes.append(f"{video.width}x{video.height}, scaled to cover {W}x{H} and cropped around the centre")
    if video.frames > 1 and abs(video.fps - fps) > 0.01:
        changes.append(f"{video.frames} frames at {video.fps:.4g} a second, taken as {opened.frames} at {fps:g}")
    if changes:
        console.print(f"note: {path}: {'; '.join(changes)}")
    return opened


def read_picture(
    path: pathlib.Path, size: tuple[int, int], options: Options, console: rich.console.Console
) -> np.ndarray:
    """A picture, or the first frame of a video, [H, W, 3] uint8. Raises: InputError if it can't be read."""
    return next(open_input_video(path, size, 1.0, 1, options, console).read(0, 1))


def read_mask(path: pathlib.Path, video: Video, size: tuple[int, int], options: Options) -> np.ndarray:
    """The pixels that a mask keeps, [H, W] bool: the dark ones, scaled and cropped as the video is.

    Args:
      path: a picture of the video's own size.
      size: (height, width) to which the video is brought.
    Raises: InputError if it has another size, or keeps nothing or everything.
    """
    mask = probe(path, options)
    if (mask.width, mask.height) != (video.width, video.height):
        raise InputError(
            f"--mask={path}: {mask.width}x{mask.height}, but {video.path} is {video.width}x{video.height}"
        )
    (picture,) = read_frames(mask, [size], fps=1.0, frames=1)
    kept = np.asarray(Image.fromarray(picture[0]).convert("L")) < BRIGHT
    if kept.all() or not kept.any():
        fault = "nothing is bright in it, so nothing would be made" if kept.all() else "all of it is bright"
        raise InputError(f"--mask={path}: {fault}; white is made anew, black is kept")
    return kept
