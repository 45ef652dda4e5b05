"""Animated emoji as short loops: WebP files -> uint8 [24, 64, 64, 4] arrays, kept in a folder."""

import io
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, UnidentifiedImageError

from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write

FPS = 8.0
LOOP = 24  # frames until an animation begins again
SIZE = 64  # pixels a side
FRAMES = LOOP + 1  # of a video: its last frame is its first, so that a loop is whole
SOURCE_FPS = 24.0


def read_animation(data: bytes, where: str) -> np.ndarray | None:
    """A loop of three seconds, colours multiplied by opacity, uint8 [LOOP, SIZE, SIZE, 4]; None for a still.

    Args:
      data: of an animated WebP whose sides are a multiple of SIZE.
      where: its name, for messages.
    Raises: InputError if it is damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
            if getattr(image, "n_frames", 1) == 1:
                return None
            wanted, frames = loop_times(image.n_frames), {}
            for number in range(image.n_frames):
                image.seek(number)
                image.load()
                if number in wanted:
                    frames[number] = _shrunk(image)
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"{where}: is no WebP picture, or damaged ({error})") from error
    return np.stack([frames[number] for number in wanted])


def loop_times(count: int) -> list[int]:
    """The numbers of LOOP frames, evenly spaced over one or more whole loops of `count` frames.

    A loop much shorter than three seconds is shown more than once; its speed changes by less than half.
    """
    loops = max(1, round(LOOP / FPS * SOURCE_FPS / count))
    return [step * count * loops // LOOP % count for step in range(LOOP)]


def _shrunk(image):
    """Means over squares of pixels, of colours times opacity and of opacity."""
    pixels = np.asarray(image.convert("RGBA"), np.float32)
    side = pixels.shape[0] // SIZE
    pixels[..., :3] *= pixels[..., 3:] / 255
    means = pixels.reshape(SIZE, side, SIZE, side, 4).mean((1, 3))
    return np.rint(means).astype(np.uint8)


def over_colour(animation: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The animation in front of a plain colour, uint8 [F, H, W, 3]."""
    opacity = animation[..., 3:].astype(np.float32) / 255
    made = animation[..., :3] + (1 - opacity) * np.asarray(colour, np.float32)
    return np.rint(np.clip(made, 0, 255)).astype(np.uint8)


def read_files(folder: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """(name without suffix, content) of each WebP file in a folder, or in the npm packages (.tgz) in it."""
    for path in sorted(folder.glob("*.webp")):
        yield path.stem, path.read_bytes()
    for path in sorted(folder.glob("*.tgz")):
        try:
            with tarfile.open(path, "r:gz") as package:
                for member in package:
                    name = pathlib.PurePosixPath(member.name)
                    if member.isfile() and name.suffix == ".webp":
                        yield name.stem, package.extractfile(member).read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise InputError(
                f"{path}: can't be read as an npm package ({error}); remove it and fetch again"
            ) from error


def unpack(
    source: pathlib.Path, folder: pathlib.Path, *, progress: Callable[[int], None] = lambda done: None
) -> int:
    """Write every animation of `source` as NAME.npy into `folder`; those that are there are kept.

    Args:
      source: folder of WebP files or of the npm packages.
      progress: called with the number of files that were read.
    Returns: the number of animations.
    Raises: InputError if there is none, or a file is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write(item):
        name, data = item
        path = folder / f"{name}.npy"
        if path.exists():
            return True
        frames = read_animation(data, f"{source}: {name}.webp")
        if frames is None:
            return False
        with atomic_write(path) as partial, partial.open("wb") as file:
            np.save(file, frames)
        return True

    animated = 0
    with ThreadPoolExecutor(2) as pool:
        for done, there in enumerate(_ahead(pool, write, read_files(source)), start=1):
            animated += there
            progress(done)
    if not animated:
        raise InputError(f"{source}: has no animated WebP, and no npm package (.tgz) with some")
    return animated


def _ahead(pool, work, items, waiting=8):
    """The results of `work`, with few items waiting in memory."""
    pending = []
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) > waiting:
            yield pending.pop(0).result()
    for future in pending:
        yield future.result()
