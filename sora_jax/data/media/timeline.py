"""Times of a video's frames, from the time stamps of its packets."""

import dataclasses
from collections.abc import Sequence

import numpy as np

_DEFAULT_PERIOD = 0.04  # seconds, where neither stamps nor header tell
_REORDERED_FRAMES = 17  # decoders hold back at most 16 frames to put them in order
# Stamps that step back further than this begin a new part: of decoding, which never step back; of showing.
_DECODING_JUMP, _SHOWING_JUMP = 0.1, 1.0  # seconds


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Times of the frames in the order in which they are shown.

    times: in seconds, rising, [n].
    end: when the last frame ends, in seconds.
    derived: number of times that the stamps do not give.
    parts: number of parts joined, each with stamps of its own.
    period: typical time between two frames, in seconds.
    cut_off: number of frames at the beginning that can't be decoded: those before the first keyframe.
    bytes_left_out: size of another file that is joined to this one and not read.
    """

    times: np.ndarray
    end: float
    derived: int
    parts: int
    period: float
    cut_off: int = 0
    bytes_left_out: int = 0

    def without_frames_before(self, seconds: float) -> "Timeline":
        """The timeline from the first frame that is decoded on."""
        times = self.times[self.times >= seconds - self.period / 2]
        return dataclasses.replace(self, times=times, cut_off=len(self.times) - len(times))


def make_timeline(
    stamps: Sequence[tuple[int | None, int | None, int]], tick: float, rate: float, *, in_order: bool
) -> Timeline:
    """The times of frames.

    Decoders return frames in the order in which they are shown, so the n-th frame has the n-th smallest stamp of
    its part, whether the stamps are of decoding or of showing.

    Args:
      stamps: of each packet, in order: time of showing and of decoding (None: missing) and duration, in ticks.
      tick: in seconds.
      rate: nominal frames per second, for stamps that are missing; 0: unknown.
      in_order: False if the frames' own stamps proved to be wrong: they are all derived.
    """
    values = np.array([np.nan if value is None else value for value in map(_shown, stamps)], float) * tick
    period = _typical_period(stamps, tick) or (1 / rate if rate else _DEFAULT_PERIOD)
    starts = _part_starts(stamps, tick, period)
    times, derived, end = [], 0, None
    for part in np.split(values, starts):
        made, wrong = _rising(part, period)
        if end is not None:
            made += end - made[0]
        end = made[-1] + period
        derived += wrong
        times.append(made)
    if len(times) == 1 and not derived:
        end = max((_shown(stamp) + stamp[2]) * tick for stamp in stamps)
    return Timeline(
        times=np.concatenate(times),
        end=float(end),
        derived=derived if in_order else len(values),
        parts=len(times),
        period=period,
    )


def _shown(stamp):
    return stamp[0] if stamp[0] is not None else stamp[1]


def _typical_period(stamps, tick):
    """Median time between two frames, in seconds; 0 if there are fewer."""
    decoding = np.diff([stamp[1] for stamp in stamps if stamp[1] is not None])
    if not len(decoding):
        decoding = np.diff(sorted(stamp[0] for stamp in stamps if stamp[0] is not None))
    rising = decoding[decoding > 0]
    return float(np.median(rising)) * tick if len(rising) else 0.0


def _part_starts(stamps, tick, period):
    """Indices of the packets whose stamps step back further than reordering explains."""
    column, jump = 1, max(_DECODING_JUMP, 2 * period) / tick
    if all(stamp[1] is None for stamp in stamps):
        column, jump = 0, max(_SHOWING_JUMP, _REORDERED_FRAMES * period) / tick
    starts, highest = [], None
    for i, stamp in enumerate(stamps):
        value = stamp[column]
        if value is None:
            continue
        if highest is not None and value < highest - jump:
            starts.append(i)
            highest = value
        highest = value if highest is None else max(highest, value)
    return starts


def _rising(values, period):
    """Rising times of a part, and how many of them are derived.

    Where stamps are missing, all frames are a period apart. Frames with equal stamps share the time to the next.
    """
    known = values[~np.isnan(values)]
    if len(known) < len(values):
        first = known.min() if len(known) else 0.0
        return first + period * np.arange(len(values)), len(values) - len(known)
    distinct, counts = np.unique(values, return_counts=True)
    following = np.append(distinct[1:], distinct[-1] + period * counts[-1])
    steps = np.repeat((following - distinct) / counts, counts)
    places = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(distinct, counts) + places * steps, len(values) - len(distinct)


def find_spans(timeline: Timeline, max_gap: float) -> list[tuple[float, float]]:
    """(start, duration) in seconds of the spans of a video without a gap above `max_gap` and four periods."""
    times, limit = timeline.times, max(max_gap, 4 * timeline.period)
    cuts = np.flatnonzero(np.diff(times) > limit) + 1
    spans = []
    for part in np.split(times, cuts):
        length, n = float(part[-1] - part[0]), len(part)
        duration = length * n / (n - 1) if n > 1 else timeline.period
        spans.append((float(part[0]), duration))
    start, duration = spans[-1]
    last = min(timeline.end, float(times[-1]) + limit)
    spans[-1] = start, max(duration, last - start)
    return spans
