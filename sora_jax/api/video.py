"""A video that a model made: its frames, how it was made, and its file."""

import base64
import html
import os
import pathlib
import tempfile

import numpy as np

from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, copy_file
from sora_jax.data.media.video import probe, read_clip
from sora_jax.generate.output.files import write_video
from sora_jax.generate.sample import Made


class Video:
    """A video that a model made. In a notebook it plays.

    Args:
      made: its frames in memory, or its file.
    """

    def __init__(self, made: Made):
        self._made = made
        self._frames = made.frames

    @property
    def frames(self) -> np.ndarray:
        """The frames, [F, H, W, C] uint8; of a video that was written while it was made, those of its file."""
        if self._frames is None:
            video = probe(self._path)
            self._frames = read_clip(video, (video.height, video.width), fps=self.fps, frames=video.frames)
        return self._frames

    @property
    def fps(self) -> float:
        """Frames a second."""
        return self._made.fps

    @property
    def metadata(self) -> dict:
        """How it was made: prompt, seed, settings, and the hash of the model."""
        return dict(self._made.metadata)

    @property
    def prompt(self) -> str:
        return self._made.metadata["prompt"]

    @property
    def seconds(self) -> float:
        """Length."""
        return len(self.frames) / self.fps

    @property
    def path(self) -> pathlib.Path | None:
        """Its file, if it was written while it was made."""
        return self._made.path

    @property
    def _path(self) -> pathlib.Path:
        if self._made.path is None:
            raise InputError("the video is in memory; save it first")
        return self._made.path

    def save(self, path: str | os.PathLike) -> pathlib.Path:
        """Write the mp4, and its manifest NAME.c2pa.json beside it: the same bytes as the command `sample` writes.

        Raises: InputError if it can't be written.
        """
        target = as_path(path)
        if self._made.path is not None:
            copy_file(self._path, target)
            copy_file(self._path.with_suffix(".c2pa.json"), target.with_suffix(".c2pa.json"))
            return target
        chunks = iter([self.frames])
        if reason := write_video(target, chunks, self.fps, self._made.metadata, self._made.files):
            raise InputError(reason)
        return target

    def _repr_html_(self) -> str:
        """A player with the video in it, for notebooks."""
        if self._made.path is not None:
            data = self._path.read_bytes()
        else:
            with tempfile.TemporaryDirectory() as folder:
                data = self.save(pathlib.Path(folder) / "video.mp4").read_bytes()
        _, height, width, _ = self.frames.shape
        scale = max(1, 256 // max(height, width))
        return (
            f'<video controls loop autoplay muted playsinline width="{width * scale}" height="{height * scale}" '
            f'style="image-rendering: pixelated" title="{html.escape(self.prompt, quote=True)}" '
            f'src="data:video/mp4;base64,{base64.b64encode(data).decode()}"></video>'
        )

    def __repr__(self) -> str:
        F, H, W, _ = self.frames.shape
        return f"Video({self.prompt!r}, {W}x{H}, {F} frames, {self.fps:g} fps)"
