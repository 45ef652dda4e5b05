"""Crops of clips of pixels, of one size and length, for training an autoencoder."""

from collections.abc import Iterable

import numpy as np

from sora_jax.config.load import parse_size
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.data.loader.mixture import Mixture


class Crops:
    """Crops of the clips of a split.

    clips: indices of the clips that are as large as the crop.
    pictures: indices of the clips with at least one frame of the crop's height and width.
    notes: remarks for the user, one line each.

    Args:
      settings: data.path, data.crop_size and data.crop_frames.
      split: "train" or "validation".
    Raises: InputError if the autoencoder can't take such crops, or no clip is as large as the crop.
    """

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
        self.clips = np.flatnonzero(fits.all(axis=1))
        self.pictures = np.flatnonzero(fits[:, 1:].all(axis=1))
        wanted = f"{data.crop_frames} frames of {data.crop_size}"
        if not len(self.clips):
            largest = max(clips, key=lambda clip: np.prod(clip.shape))
            raise InputError(
                f"{self.records.path}: none of {len(clips)} clips in the {split} split has {wanted}; "
                f"the largest has {largest.frames} of {largest.width}x{largest.height}"
            )
        self.notes: tuple[str, ...] = ()
        if len(self.clips) < len(clips):
            self.notes = (
                f"{len(clips) - len(self.clips)} of {len(clips)} clips are smaller than {wanted}: not used",
            )

    def sources(self, clips: Iterable[int]) -> list[str]:
        """The source files of these clips."""
        return [self._manifest[clip].source for clip in clips]

    def cut(self, clip: int, share: np.ndarray, *, frames: int | None = None) -> np.ndarray:
        """A crop of a clip, uint8 [F, H, W, 3].

        Args:
          clip: its index.
          share: position of the crop along (frames, rows, columns): 0 at the beginning, 1 at the end.
          frames: number of frames; None: data.crop_frames.
        """
        pixels = self.records.read(self._split, int(clip))
        sizes = (frames or self._crop[0], *self._crop[1:])
        free = np.array(pixels.shape[:3]) - sizes + 1
        starts = np.minimum((share * free).astype(int), free - 1)
        return pixels[tuple(slice(s, s + n) for s, n in zip(starts, sizes, strict=True))]
