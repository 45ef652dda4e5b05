"""Read videos and pictures: what a file holds, and its frames at wanted times and sizes.

A picture is a video of one frame. Frames come out upright (EXIF and display matrices applied), with square pixels,
in full-range RGB, over the background where they are transparent.
"""

import contextlib
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator, Sequence

import av
import numpy as np

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import as_path, local_file
from sora_jax.data.media.container import Container, deinterlace, orientation_of
from sora_jax.data.media.formats import FFMPEG, recognise
from sora_jax.data.media.options import Options
from sora_jax.data.media.picture import decode_picture, read_picture_timeline
from sora_jax.data.media.pixels import fit
from sora_jax.data.media.timeline import Timeline, find_spans

_FIRST_FRAMES = 16  # decoded to learn whether stamps are in order, and frames interlaced
_DEFAULT_OPTIONS = Options()


@dataclasses.dataclass(frozen=True)
class Video:
    """What a file holds, as it is shown: upright, with square pixels.

    path: the file.
    width, height: in pixels.
    fps: average frames per second; 0 for a single frame.
    frames: number of frames.
    spans: (start, duration) in seconds of the parts between long gaps; the duration of a single frame is 0.
    notes: what is done with the file beyond reading it, such as "deinterlaced" or "cut at gaps in time: 2".
    options: how its frames are decoded.
    """

    path: pathlib.Path
    width: int
    height: int
    fps: float
    frames: int
    spans: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = ()
    options: Options = _DEFAULT_OPTIONS
    format: tuple[str, str] = dataclasses.field(default=(FFMPEG, "mov"), repr=False)
    timeline: Timeline = dataclasses.field(default=None, repr=False, compare=False)
    in_order: bool = dataclasses.field(default=True, repr=False)

    @property
    def start(self) -> float:
        """Time of the first frame, in seconds."""
        return self.spans[0][0]

    @property
    def duration(self) -> float:
        """From the first frame's start to the last one's end, without long gaps, in seconds; 0 for one frame."""
        return sum(duration for _, duration in self.spans)


def probe(path: pathlib.Path, options: Options = _DEFAULT_OPTIONS, *, header_only: bool = False) -> Video:
    """What a video or picture holds; reads the whole file once, decodes its first frames.

    Args:
      path: the file. Its first bytes decide how it is opened, never its name; see `formats`.
      options: how to decode, and limits that hold now and when frames are read.
      header_only: believe the header of a video that states length and rate, and read only its first frames.
    Raises: InputError with the reason if the file is absent, empty, cut off, too large, or holds no pictures.
    """
    path = as_path(path)
    if not path.is_file():
        there = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file" + (f", {did_you_mean(path.name, there)}" if there else ""))
    path = local_file(path)
    library, kind = recognise(path)
    if library == FFMPEG:
        timeline, first, in_order, interlaced = _probe_container(path, kind, options, header_only)
    else:
        timeline, first = read_picture_timeline(path, kind, options)
        in_order, interlaced = True, False
    n, spans = len(timeline.times), find_spans(timeline, options.max_gap)
    if n == 1:
        spans = [(spans[0][0], 0.0)]
    height, width = first.shown_size
    left_out = timeline.bytes_left_out
    notes = {
        "deinterlaced" if options.deinterlace else "interlaced, left so": interlaced,
        f"with time stamps that had to be derived, frames: {timeline.derived}": timeline.derived > 0,
        f"joined of parts: {timeline.parts}": timeline.parts > 1,
        f"joined to another file, which is left out, MiB: {left_out / 2**20:.1f}": left_out > 0,
        f"cut off at the beginning, frames: {timeline.cut_off}": timeline.cut_off > 0,
        f"cut at gaps in time: {len(spans) - 1}": len(spans) > 1,
    }
    return Video(
        path,
        width,
        height,
        fps=_mean_rate(timeline, len(spans)),
        frames=n,
        spans=tuple(spans),
        notes=tuple(note for note, true in notes.items() if true),
        options=options,
        format=(library, kind),
        timeline=timeline,
        in_order=in_order and not timeline.derived and timeline.parts == 1,
    )


def _probe_container(path, demuxer, options, header_only):
    """A video's timeline, its first frame, whether stamps are in order, and whether frames are interlaced."""
    with Container(path, demuxer, options) as container:
        frames = list(itertools.islice(container.decode(), _FIRST_FRAMES))
    if not frames:
        raise InputError(f"{path}: no frame of it can be decoded; encode it again")
    stamps = [frame.pts for frame in frames]
    in_order = None not in stamps and all(a < b for a, b in itertools.pairwise(stamps))
    with Container(path, demuxer, options) as container:
        declared = container.declared_timeline() if header_only else None
        timeline = declared or container.read_timeline(in_order=in_order)
        if in_order:
            timeline = timeline.without_frames_before(frames[0].time)
        first = container.frame(frames[0], 0.0, orientation_of(frames[0]))
    return timeline, first, in_order, any(frame.interlaced_frame for frame in frames)


def _mean_rate(timeline, spans):
    """Frames per second, without the gaps between spans; 0 for a single frame."""
    steps = np.sort(np.diff(timeline.times))
    steps = steps[: len(steps) - (spans - 1)]
    return len(steps) / float(steps.sum()) if len(steps) else 0.0


def span_lengths(video: Video, fps: float) -> list[int]:
    """The number of frames of each span of a video at `fps`; at least 1 each.

    Times are exact to half a frame, of the video or at `fps`: containers round them, Matroska to milliseconds.
    """
    tolerance = 0.5 / max(video.fps, fps) if video.fps else 0.0
    return [max(1, math.floor((duration + tolerance) * fps + 1e-6)) for _, duration in video.spans]


def count_frames(video: Video, fps: float) -> int:
    """The number of frames of the video at `fps`; at least 1."""
    return sum(span_lengths(video, fps))


def read_frames(
    video: Video, sizes: Sequence[tuple[int, int]], *, fps: float, start: int = 0, frames: int | None = None
) -> Iterator[tuple[np.ndarray, ...]]:
    """The video's frames at `fps`, each at every one of the sizes; decodes once, from the nearest keyframe.

    A frame is the one nearest in time, scaled to cover (H, W) and cropped around the centre: never stretched.

    Args:
      video: as `probe` describes it.
      sizes: (H, W) pairs.
      fps: frames per second to sample at.
      start: index of the first frame, counted at `fps` over all spans.
      frames: number of frames; None: all that follow.
    Returns: for each frame, one uint8 [H, W, 3] per size.
    Raises: InputError if the range lies outside the video, or a frame is damaged.
    """
    total = count_frames(video, fps)
    frames = total - start if frames is None else frames
    if start < 0 or frames < 1 or start + frames > total:
        raise InputError(
            f"{video.path}: frames {start} to {start + frames} of {total} at {fps:g} fps do not exist"
        )
    times = [
        begin + i / fps
        for (begin, _), length in zip(video.spans, span_lengths(video, fps), strict=True)
        for i in range(length)
    ][start : start + frames]
    with contextlib.ExitStack() as stack:
        decoded = _decode_from(video, times[0] if start else None, stack)
        shown, made = None, ()
        for frame in _nearest(video, decoded, times):
            if frame is not shown:
                shown, made = frame, tuple(fit(frame, size) for size in sizes)
            yield made


def read_clip(video: Video, size: tuple[int, int], *, fps: float, frames: int, start: int = 0) -> np.ndarray:
    """One clip, uint8 [F, H, W, 3]; arguments: as for `read_frames`."""
    return np.stack([made for (made,) in read_frames(video, [size], fps=fps, start=start, frames=frames)])


def check_decodable(video: Video):
    """Decode the whole file, so that its options' limits are known to hold. Raises: InputError if they don't."""
    with contextlib.ExitStack() as stack:
        for _ in _decode_from(video, None, stack):
            pass


def _decode_from(video, seconds, stack):
    """The video's frames in order; from the keyframe before a time, if it is given and the file can do that."""
    library, kind = video.format
    if library != FFMPEG:
        return decode_picture(video.path, kind, video.options)
    if seconds is not None and video.in_order:
        container = stack.enter_context(Container(video.path, kind, video.options))
        with contextlib.suppress(InputError, av.FFmpegError):
            container.seek(max(seconds, video.start))
            raws = container.decode()
            first = next(raws, None)
            # Without an index, or where frames refer to what is before the jump, decode from the beginning.
            if first is not None and first.pts is not None and first.time <= seconds and not first.is_corrupt:
                return _time_frames(video, container, itertools.chain([first], raws))
    container = stack.enter_context(Container(video.path, kind, video.options))
    return _time_frames(video, container, container.decode())


def _time_frames(video, container, raws):
    """Frames with their times: from the frames' own stamps where these are right, else by counting frames."""
    frames, shown_as = _times(video, container, raws), None
    for raw, seconds in deinterlace(frames) if video.options.deinterlace else frames:
        shown_as = orientation_of(raw) if shown_as is None else shown_as
        yield container.frame(raw, seconds, shown_as)


def _times(video, container, raws):
    tick, times, last = float(container.stream.time_base), video.timeline.times, None
    for number, raw in enumerate(raws):
        if video.in_order and raw.pts is not None and (last is None or raw.pts * tick > last):
            last = raw.pts * tick
        elif not video.in_order and number < len(times):
            last = float(times[number])
        else:
            last = video.start if last is None else last + video.timeline.period
        yield raw, last


def _nearest(video, frames, times):
    """For each of the rising times, the frame nearest to it; of two equally near, the earlier.

    Raises: InputError if there is no frame, or the frames end too early: no clip is filled up with stills.
    """
    frame = next(frames, None)
    if frame is None:
        raise InputError(f"{video.path}: no frame of it can be decoded; encode it again")
    after = next(frames, None)
    longest = max(video.options.max_gap, 5 * video.timeline.period)
    for time in times:
        while after is not None and abs(after.time - time) < abs(frame.time - time) - 1e-5:
            frame, after = after, next(frames, None)
        if after is None and time > frame.time + longest:
            raise InputError(
                f"{video.path}: cut off or damaged: decoding ends {time - frame.time:.2f} s too early"
            )
        yield frame
