"""Uploads: how large they may be, and where they must lie."""

import dataclasses
import pathlib
import warnings

from PIL import Image, UnidentifiedImageError

from sora_jax.core.errors import InputError
from sora_jax.data.media.video import probe


@dataclasses.dataclass(frozen=True)
class Limits:
    """bytes: of a file; pixels: of a frame; frames: of a video."""

    bytes: int = 100 * 2**20
    pixels: int = 4096 * 2304
    frames: int = 3600


def admit(path: str | pathlib.Path, folder: pathlib.Path, limits: Limits) -> pathlib.Path:
    """The file, if it lies in the folder, is a video or picture, and is within the limits.

    Raises: InputError, with no more of the path than its name.
    """
    path, folder = pathlib.Path(path).resolve(), folder.resolve()
    name = path.name
    if not path.is_relative_to(folder) or not path.is_file():
        raise InputError(f"{name}: was not uploaded here")
    if (size := path.stat().st_size) > limits.bytes:
        raise InputError(f"{name}: {size / 2**20:.1f} MiB; at most {limits.bytes / 2**20:g} MiB are taken")
    try:
        # A picture's header first: a small file may decode into gigabytes.
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            _check_pixels(name, *picture.size, limits)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        if isinstance(error, Image.DecompressionBombError):
            raise InputError(f"{name}: at most {limits.pixels:,} pixels are taken") from None
    try:
        video = probe(path)
    except InputError as error:
        raise InputError(str(error).replace(f"{path.parent}/", "")) from None
    _check_pixels(name, video.width, video.height, limits)
    if video.frames > limits.frames:
        raise InputError(f"{name}: {video.frames:,} frames; at most {limits.frames:,} are taken")
    return path


def _check_pixels(name, width, height, limits):
    if width * height > limits.pixels:
        raise InputError(f"{name}: {width}x{height}; at most {limits.pixels:,} pixels are taken")
