"""The size and frame rate that a video is refined to, and the passes that lead there."""

import dataclasses

from sora_jax.config.load import parse_size
from sora_jax.core.errors import InputError
from sora_jax.generate.refine.stream import sizes_between

MOST = 4  # times the size, and times the frame rate
MAX_SIDE = 8192  # pixels, of H.264
ASPECT = 0.02  # largest relative change of the aspect ratio: sides are whole numbers
RATE = 0.01  # largest relative error of a multiple of the frame rate


@dataclasses.dataclass(frozen=True)
class Target:
    """What a video becomes.

    sizes: (height, width) after each pass.
    factor: of the frame rate.
    fps: frames a second.
    """

    sizes: list[tuple[int, int]]
    factor: int
    fps: float

    @property
    def size(self) -> tuple[int, int]:
        return self.sizes[-1]


def target_of(
    source: tuple[int, int], fps: float, size: str, rate: float | None, scale: float, flag: str = "--size"
) -> Target:
    """The target of a video.

    Args:
      source: (height, width) of the video; fps: its frames a second, 0 for one frame.
      size: WIDTHxHEIGHT; "": as much larger as the refiner was trained for.
      rate: wanted frames a second; None: as they are.
      scale: the largest enlargement of a pass.
      flag: that names the size, for errors.
    Raises: InputError for a size or rate that can't be reached; names the nearest.
    """
    if size:
        wanted = parse_size(size, flag)
        if isinstance(wanted, int):
            raise InputError(f"{flag}={size}: write WIDTHxHEIGHT, for example {named(times(source, scale))}")
        check_size(source, wanted, f"{flag}={size}")
    else:
        wanted = times(source, scale)
    return Target(sizes_between(source, wanted, scale), *rate_of(fps, rate))


def times(source: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) enlarged, even."""
    rows, columns = (2 * round(side * scale / 2) for side in source)
    return rows, columns


def named(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def check_size(source: tuple[int, int], size: tuple[int, int], where: str):
    """Raise InputError for a size that a video of the size `source` can't be refined to."""
    smallest, largest = times(source, 1.0), times(source, MOST)
    ratios = [wanted / side for wanted, side in zip(size, source, strict=True)]
    even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
    if max(size) > MAX_SIDE:
        raise InputError(f"{where}: H.264 holds at most {MAX_SIDE} pixels on a side")
    if min(ratios) < 1 or max(ratios) > MOST + ASPECT:
        fault = "smaller than the video" if min(ratios) < 1 else f"more than {MOST} times the video"
        raise InputError(
            f"{where}: {fault}, {named(source)}; name a size from {named(smallest)} to {named(largest)}"
        )
    if abs(ratios[1] / ratios[0] - 1) > ASPECT:
        near = times(source, min(MOST, sum(ratios) / 2))
        raise InputError(f"{where}: of another shape than the video, {named(source)}; {named(near)} has its shape")
    if even != size:
        raise InputError(f"{where}: H.264 shares colour among 2x2 pixels; the nearest even size is {named(even)}")


def rate_of(fps: float, rate: float | None) -> tuple[int, float]:
    """(factor of the frame rate, frames a second).

    Raises: InputError for a rate that is no multiple of the video's, up to MOST times.
    """
    if rate is None:
        return 1, fps or 1.0
    if not fps:
        raise InputError(f"--fps={rate:g}: the video has one frame, and no rate; leave it out")
    factor = round(rate / fps)
    if not 1 <= factor <= MOST or abs(rate / (factor * fps) - 1) > RATE:
        known = ", ".join(f"{n * fps:g}" for n in range(1, MOST + 1))
        raise InputError(f"--fps={rate:g}: the video has {fps:g}; it can become {known}")
    return factor, factor * fps
