"""Cut videos into clips: which spans, at which sizes, and their pixels."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sora_jax.config.load import parse_size
from sora_jax.config.schema import DataSettings
from sora_jax.core.errors import InputError
from sora_jax.data.media.options import Options
from sora_jax.data.media.video import Video, probe, read_frames, span_lengths
from sora_jax.data.prepare.sources import Source
from sora_jax.data.records.records import Clip
from sora_jax.data.tokenizer import Tokenizer

# A clip may be this much larger than its source: sides are rounded.
_ENLARGED = 1.02


def check_cuts(
    sizes: Sequence[str], lengths: Sequence[int], *, multiple: tuple[int, int], stride: int, period: int
) -> None:
    """Check that the model accepts the sizes and lengths that are asked for.

    Args:
      sizes: "WIDTHxHEIGHT" or "SIDE".
      lengths: numbers of frames.
      multiple: heights and widths must be multiples of these.
      stride, period: frames must be `stride` n + 1, and n + 1 a multiple of `period`.
    Raises: InputError with the nearest value that is allowed.
    """
    if not sizes or not lengths:
        raise InputError("config.data: sizes and frames must each name one at least")
    for size in sizes:
        parsed = parse_size(size, "config.data.sizes")
        if isinstance(parsed, int):
            if parsed < min(multiple):
                raise InputError(f"config.data.sizes: {size} is less than the model's smallest, {min(multiple)}")
            continue
        near = [_round(side, step) for side, step in zip(parsed, multiple, strict=True)]
        if tuple(near) != parsed:
            raise InputError(
                f"config.data.sizes: {size} must be multiples of {multiple[1]}x{multiple[0]}; "
                f"the nearest is {near[1]}x{near[0]}"
            )
    for length in lengths:
        cycle = stride * period  # possible lengths are cycle n + first
        first = stride * (period - 1) + 1
        if length < first or (length - first) % cycle:
            below = max(0, (length - first) // cycle) * cycle + first
            near = f"the nearest are {below} and {below + cycle}"
            raise InputError(f"config.data.frames: {length} must be {cycle} n + {first}; {near}")


def fit_size(size: str, shown: tuple[int, int], *, multiple: tuple[int, int]) -> tuple[int, int] | None:
    """(height, width) of clips of this size, cut from a video; None if it would have to be enlarged.

    Args:
      size: "WIDTHxHEIGHT": exactly that; "SIDE": about SIDE * SIDE pixels at the video's own aspect ratio.
      shown: (height, width) of the video.
      multiple: height and width are multiples of these.
    """
    parsed, (height, width) = parse_size(size, "config.data.sizes"), shown
    if not isinstance(parsed, int):
        return parsed if max(parsed[0] / height, parsed[1] / width) <= _ENLARGED else None
    if parsed * parsed > height * width * _ENLARGED**2:
        return None
    made = []
    for side, other, step in ((height, width, multiple[0]), (width, height, multiple[1])):
        largest = int(side * _ENLARGED) // step * step
        made.append(min(_round(parsed * math.sqrt(side / other), step), largest))
    return (made[0], made[1]) if all(made) else None


def _round(side, step):
    return max(step, round(side / step) * step)


def cut_lengths(frames: int, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(start, length) of the clips of a video: one after the other, each the longest that still fits.

    What is left at the end becomes shorter clips, but only one of a single frame: pictures a sixteenth of a
    second apart are one picture.
    """
    cuts, start = [], 0
    for length in sorted(set(lengths), reverse=True):
        while start + length <= frames:
            cuts.append((start, length))
            start += length
            if length == 1:
                break
    return cuts


@dataclasses.dataclass(frozen=True)
class CutPlan:
    """The clips to cut from a video.

    sizes: (height, width) of the clips; each cut is made at each of them.
    cuts: (start in seconds from the video's first frame, frames skipped before it, frames), in order.
    notes: remarks on the file, for the summary.
    """

    sizes: list[tuple[int, int]]
    cuts: list[tuple[float, int, int]]
    notes: list[str]


def plan_cuts(video: Video, data: DataSettings, multiple: tuple[int, int]) -> CutPlan:
    """Which clips a video gives.

    Raises: InputError if it gives none, because it is too small or too short.
    """
    fitted = {size: fit_size(size, (video.height, video.width), multiple=multiple) for size in data.sizes}
    notes = list(video.notes)
    notes += [f"smaller than size {size}, not cut at it" for size, made in fitted.items() if made is None]
    sizes = list(dict.fromkeys(made for made in fitted.values() if made is not None))
    if not sizes:
        raise InputError(f"{video.width}x{video.height} is smaller than every size asked for")
    cuts, at = [], 0
    for (begin, _), length in zip(video.spans, span_lengths(video, data.fps), strict=True):
        for start, frames in cut_lengths(length, data.frames):
            cuts.append((begin - video.start + start / data.fps, at + start, frames))
        at += length
    if not cuts:
        seconds = min(data.frames) / data.fps
        raise InputError(f"{video.duration:.2f} s long; the shortest clip asked for lasts {seconds:.2f} s")
    if 0 < video.fps < 0.9 * data.fps:
        notes.append(f"with fewer than {data.fps:g} frames a second, some shown twice")
    return CutPlan(sizes, cuts, notes)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a file.

    name: of the file.
    clips: number of clips that were cut from it.
    reason: why it was left out, or from some place on; "" if all of it was used.
    notes: remarks.
    """

    name: str
    clips: int = 0
    reason: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: dict) -> "Outcome":
        return cls(**{**values, "notes": tuple(values["notes"])})


class Cutter:
    """Cut the sources of one shard, and keep the outcome of each."""

    def __init__(self, split, data: DataSettings, words: Tokenizer, multiple, advance: Callable[[], None]):
        self._split, self._data, self._words = split, data, words
        self._multiple, self._advance = multiple, advance
        self.outcomes: list[Outcome] = []

    def clips(self, sources: list[Source]) -> Iterator[tuple[Clip, np.ndarray]]:
        """Each clip with its pixels, uint8 [F, H, W, 3]."""
        for source in sources:
            kept, reason, notes = 0, "", []
            try:
                with source.opened() as path:
                    for clip, pixels in self._cut(source, path, notes):
                        yield clip, pixels
                        kept += 1
            except InputError as error:
                reason = without_path(str(error), path, source.name)
            except Exception as error:
                error.add_note(f"This happened in {source.name}, a file of --videos.")
                raise
            self.outcomes.append(Outcome(source.name, kept, reason, tuple(notes)))
            self._advance()

    def _cut(self, source, path, notes):
        data = self._data
        video = probe(path, Options.of(data))
        plan = plan_cuts(video, data, self._multiple)
        notes += plan.notes + ([] if source.captions else ["without a caption"])
        texts = source.captions or ("",)
        tokens = tuple(len(self._words.encode(text)) for text in texts)
        _, last_start, last_length = plan.cuts[-1]
        frames, at = read_frames(video, plan.sizes, fps=data.fps, frames=last_start + last_length), 0
        for seconds, start, length in plan.cuts:
            for _ in range(start - at):
                next(frames)
            made, at = [next(frames) for _ in range(length)], start + length
            for i, (height, width) in enumerate(plan.sizes):
                pixels = np.stack([frame[i] for frame in made])
                clip = Clip(
                    split=self._split,
                    source=source.name,
                    start=round(seconds, 4),
                    end=round(seconds + length / data.fps, 4),
                    fps=data.fps,
                    frames=length,
                    height=height,
                    width=width,
                    shape=pixels.shape,
                    captions=texts,
                    tokens=tokens,
                )
                yield clip, pixels


def without_path(message: str, path: pathlib.Path, name: str) -> str:
    """An error's message without the path of the file: a data set holds names alone, not where they lay."""
    return message.removeprefix(f"{path}: ").replace(str(path), name)


def one_ahead(items: Iterator) -> Iterator:
    """The same items; one is made in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(next, items, None)
        while (item := ahead.result()) is not None:
            ahead = thread.submit(next, items, None)
            yield item
