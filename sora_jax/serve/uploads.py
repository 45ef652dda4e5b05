"""Uploads: where they must lie, and the limits that hold while they are opened and decoded."""

import dataclasses
import pathlib

from sora_jax.core.errors import InputError
from sora_jax.data.media import options as media
from sora_jax.data.media.video import check_decodable, probe


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
        check_decodable(probe(path, limits.media))
    except InputError as error:
        raise InputError(str(error).replace(f"{path.parent}/", "")) from None
    return path
