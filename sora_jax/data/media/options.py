"""How a media file is decoded, and the limits that hold meanwhile."""

import dataclasses
import math
import pathlib

from sora_jax.config.schema import DataSettings
from sora_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on one file. They hold while it is opened and decoded, whatever its header says.

    pixels: of a frame.
    side: the longer side of a frame, in pixels.
    frames: of the file.
    read_seconds: to open the file, or to read one packet of it.
    seconds: to decode the whole file, without the time that the caller spends between frames.
    bytes_per_second: the least of the file that is decoded in a second, once it has taken `least_seconds`. A small
      file with a damaged header can ask for hours of work.
    """

    pixels: int = 2**26
    side: int = 2**14
    frames: int = 4_000_000
    read_seconds: float = 20.0
    seconds: float = math.inf
    bytes_per_second: float = 50_000.0
    least_seconds: float = 10.0

    def check_pixels(self, path, width: int, height: int):
        """Raise InputError if a frame of this size is too large."""
        if width * height > self.pixels or max(width, height) > self.side:
            raise InputError(
                f"{path}: {width}x{height}; at most {self.pixels:,} pixels are taken, {self.side:,} on a side"
            )

    def check_frames(self, path, count: int):
        """Raise InputError if so many frames are too many."""
        if count > self.frames:
            raise InputError(f"{path}: more than {self.frames:,} frames; no more are taken")

    def check_seconds(self, path, seconds: float):
        """Raise InputError if decoding has taken too long."""
        if seconds > self.seconds:
            raise InputError(f"{path}: decoding takes longer than {self.seconds:g} s; use a shorter one")
        if seconds <= self.least_seconds:
            return
        by_size = self.least_seconds + pathlib.Path(path).stat().st_size / self.bytes_per_second
        if seconds > by_size:
            raise InputError(
                f"{path}: decoding takes longer than {by_size:.0f} s, which is too long for a file of its size"
            )


@dataclasses.dataclass(frozen=True)
class Options:
    """How frames are made of a file.

    background: red, green and blue, 0 to 255, behind transparent pixels.
    deinterlace: whether frames that are flagged as interlaced are deinterlaced.
    max_gap: seconds between two frames above which the video is cut there; never below four frame periods.
    limits: bounds on the file.
    """

    background: tuple[int, int, int] = (0, 0, 0)
    deinterlace: bool = True
    max_gap: float = 1.0
    limits: Limits = dataclasses.field(default_factory=Limits)

    @classmethod
    def of(cls, data: DataSettings) -> "Options":
        """The options that a config asks for."""
        return cls(background=data.background, deinterlace=data.deinterlace, max_gap=data.max_gap)
