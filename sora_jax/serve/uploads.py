"""Given files: taken by their content alone, within limits that hold while they are opened and decoded."""

import dataclasses
import pathlib

from sora_jax.core.errors import InputError
from sora_jax.data.media import options as media
from sora_jax.data.media.formats import recognise
from sora_jax.data.media.video import check_decodable, probe

# A format by its first bytes -> the suffix that its copy gets.
PICTURES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
VIDEOS = {"mov": ".mp4", "matroska": ".webm"}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on a file.

    bytes: of the file; pixels: of a frame; frames: of a video; seconds: to decode it.
    """

    bytes: int = 100 * 2**20
    pixels: int = 4096 * 2304
    frames: int = 3600
    seconds: float = 60.0

    @property
    def media(self) -> media.Options:
        """The same bounds for reading media."""
        return media.Options(limits=media.Limits(pixels=self.pixels, frames=self.frames, seconds=self.seconds))


def suffix_of(path: pathlib.Path, limits: Limits, *, picture: bool) -> str:
    """The suffix of an uploaded file's format, if it is a picture or video of the wanted kind, within the limits.

    Raises: InputError with no word of where it lies.
    """
    if (size := path.stat().st_size) > limits.bytes:
        raise InputError(f"{size / 2**20:.1f} MiB; at most {limits.bytes / 2**20:g} MiB are taken")
    taken = PICTURES if picture else VIDEOS
    try:
        _, kind = recognise(path)
        if kind not in taken:
            formats = "a PNG, JPEG or WebP picture" if picture else "an MP4, MOV, WebM or Matroska video"
            raise InputError(f"is of the format {kind}; {formats} is taken")
        check_decodable(probe(path, limits.media))
    except InputError as error:
        raise InputError(str(error).removeprefix(f"{path}: ").replace(str(path), "the file")) from None
    return taken[kind]
