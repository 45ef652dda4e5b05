"""Uploads: how large they may be, and where they must lie."""

import dataclasses
import pathlib

from sora_jax.core.errors import InputError
from sora_jax.data.media import options
from sora_jax.data.media.video import check_decodable, probe


@dataclasses.dataclass(frozen=True)
class Limits:
    """bytes: of a file; pixels: of a frame; frames: of a video; seconds: to decode all of it."""

    bytes: int = 100 * 2**20
    pixels: int = 4096 * 2304
    frames: int = 3600
    seconds: float = 60.0


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
    within = options.Limits(pixels=limits.pixels, frames=limits.frames, seconds=limits.seconds)
    try:
        check_decodable(probe(path, options.Options(limits=within)))
    except InputError as error:
        raise InputError(str(error).replace(f"{path.parent}/", "")) from None
    return path
