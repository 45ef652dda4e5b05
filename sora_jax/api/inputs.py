"""Pictures and videos that a caller gives, as files that tasks can read."""

import hashlib
import os
import pathlib
import tempfile
from typing import TypeAlias

import numpy as np
import PIL.Image

from sora_jax.api.video import Video
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path
from sora_jax.generate.output.writer import VideoWriter

Picture: TypeAlias = str | os.PathLike | np.ndarray | PIL.Image.Image
InputVideo: TypeAlias = str | os.PathLike | np.ndarray | Video
LOSSLESS = 0  # x264's constant rate factor


class InputFiles:
    """Files of arrays, in a folder that lives as long as this object."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="sora_jax-inputs-")

    def picture(self, given: Picture) -> pathlib.Path:
        """The file of a picture: a path, [H, W, 3] uint8, [H, W] uint8, or one of Pillow's."""
        if isinstance(given, str | os.PathLike):
            return as_path(given)
        array = np.asarray(given)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise InputError(f"a picture is [H, W, 3] uint8 or a path, not {list(array.shape)} {array.dtype}")
        path = self._path(array, ".png")
        PIL.Image.fromarray(array).save(path)
        return path

    def video(self, given: InputVideo, fps: float) -> pathlib.Path:
        """The file of a video: a path, a Video, or [F, H, W, 3] uint8 at this rate."""
        if isinstance(given, str | os.PathLike):
            return as_path(given)
        if isinstance(given, Video) and given.path is not None:
            return given.path
        frames, rate = (given.frames, given.fps) if isinstance(given, Video) else (np.asarray(given), fps)
        path = self._path(frames, ".mp4")
        with VideoWriter(path, rate, crf=LOSSLESS) as file:  # lossless but for colours, of half the size
            file.write(frames)
        return path

    def _path(self, array, suffix):
        name = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]
        return pathlib.Path(self._folder.name) / f"{name}{suffix}"
