"""Clips of pixels, cut to one size and length for the autoencoder."""

from collections.abc import Iterable

import numpy as np

from sora_jax.config.load import parse_size
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.data.loader.mixture import Mixture


class Crops:
    """Pixels of a split, cut to one size and length."""

    def __init__(self, settings: Settings, split: str):
        data, strides = settings.data, settings.autoencoder
        self.records, self._split = Mixture(data.path, "pixels"), split
        size = parse_size(data.crop_size, "config.data.crop_size")
        if isinstance(size, int):
            raise InputError(f"config.data.crop_size: {data.crop_size!r} must be WIDTHxHEIGHT")
        if any(side % strides.spatial_stride for side in size):
            raise InputError(
                f"config.data.crop_size: {data.crop_size} must be a multiple of the autoencoder's "
                f"{strides.spatial_stride}"
            )
        if (data.crop_frames - 1) % strides.temporal_stride:
            raise InputError(
                f"config.data.crop_frames: {data.crop_frames} must be {strides.temporal_stride} n + 1 "
                f"for the autoencoder"
            )
        self._crop = (data.crop_frames, *size)
        self._manifest = clips = self.records.clips(split)
        fits = np.array(
            [[side >= cut for side, cut in zip(clip.shape, self._crop, strict=False)] for clip in clips]
        )
        self.clips = np.flatnonzero(fits.all(axis=1))  # as large as the crop
        self.pictures = np.flatnonzero(fits[:, 1:].all(axis=1))  # at least one frame of that size
        wanted = f"{data.crop_frames} frames of {data.crop_size}"
        if not len(self.clips):
            largest = max(clips, key=lambda clip: np.prod(clip.shape))
            raise InputError(
                f"{self.records.path}: none of {len(clips)} clips in the {split} split has {wanted}; "
                f"the largest has {largest.frames} of {largest.width}x{largest.height}"
            )
        self.notes = ()
        if len(self.clips) < len(clips):
            self.notes = (
                f"{len(clips) - len(self.clips)} of {len(clips)} clips are smaller than {wanted}: not used",
            )

    def sources(self, clips: Iterable[int]) -> list[str]:
        return [self._manifest[clip].source for clip in clips]

    def cut(self, clip: int, share: np.ndarray, *, frames: int | None = None) -> np.ndarray:
        """The crop of a clip, or so many frames of it, at these shares of the free frames, rows and columns."""
        pixels = self.records.read(self._split, int(clip))
        sizes = (frames or self._crop[0], *self._crop[1:])
        free = np.array(pixels.shape[:3]) - sizes + 1
        starts = np.minimum((share * free).astype(int), free - 1)
        return pixels[tuple(slice(s, s + n) for s, n in zip(starts, sizes, strict=True))]
