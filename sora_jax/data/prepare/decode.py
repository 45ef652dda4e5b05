"""Read videos and pictures: what a file holds, and its frames at wanted times and sizes.

A picture is a video of one frame. Frames come out upright (rotation metadata applied), with square pixels, in
full-range RGB.
"""

import contextlib
import dataclasses
import fractions
import math
import pathlib
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import atomic_write

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".gif"}
)
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})

_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
_MISSING_SECONDS = 0.5  # a file whose pictures end this long before its header says was cut off
_SEEK_MARGIN = 0.5  # seconds; containers index by decoding time, which is a few frames before the shown time


@dataclasses.dataclass(frozen=True)
class Video:
    """What a file holds, as it is shown: after rotation, with square pixels.

    path: the file.
    width, height: in pixels.
    fps: frames a second on average; 0 for a single frame.
    frames: how many.
    start: time of the first frame, in seconds.
    duration: from the first frame's start to the last one's end, in seconds; 0 for a single frame.
    """

    path: pathlib.Path
    width: int
    height: int
    fps: float
    frames: int
    start: float
    duration: float


def probe(path: pathlib.Path) -> Video:
    """What a video or picture holds; reads the whole file once, decodes one frame.

    Raises: InputError with the reason if the file is absent, empty, cut off, or holds no pictures.
    """
    with _open(path) as (container, stream):
        times, end = _times(path, container, stream)
    with _open(path) as (container, stream):
        first = next(_decode(path, container, stream), None)
        if first is None:
            raise InputError(f"{path}: no frame of it can be decoded; encode it again")
        width, height = _shown_size(first, stream)
    frames = len(times)
    span = times[-1] - times[0]
    if frames == 1 or span <= 0:
        return Video(path, width, height, 0.0, 1, times[0], 0.0)
    duration = max(end - times[0], span * frames / (frames - 1))
    return Video(path, width, height, (frames - 1) / span, frames, times[0], duration)


def count_frames(video: Video, fps: float) -> int:
    """How many frames the video has when it is shown at `fps`; at least 1."""
    return max(1, math.floor(video.duration * fps + 1e-3))


def read_frames(
    video: Video, sizes: Sequence[tuple[int, int]], *, fps: float, start: int = 0, frames: int | None = None
) -> Iterator[tuple[np.ndarray, ...]]:
    """The video's frames at `fps`, each at every one of the sizes; decodes once, from the nearest keyframe.

    A frame is the one nearest in time, scaled to cover (H, W) and cropped around the centre: never stretched.

    Args:
      video: as `probe` describes it.
      sizes: (H, W) pairs.
      fps: frames a second to sample at.
      start: index of the first frame, counted at `fps`.
      frames: how many; None for all that follow.
    Returns: for each frame, one uint8 [H, W, 3] per size.
    Raises: InputError if the span lies outside the video, or a frame is damaged.
    """
    total = count_frames(video, fps)
    frames = total - start if frames is None else frames
    if start < 0 or frames < 1 or start + frames > total:
        raise InputError(
            f"{video.path}: frames {start} to {start + frames} of {total} at {fps:g} fps do not exist"
        )
    times = [video.start + (start + i) / fps for i in range(frames)]
    with contextlib.ExitStack() as stack:
        first, decoded, stream = None, None, None
        if start > 0:
            first, decoded, stream = _jump(video, times[0], stack)
        if first is None:
            container, stream = stack.enter_context(_open(video.path))
            decoded = _decode(video.path, container, stream)
            first = next(decoded, None)
        if first is None:
            raise InputError(f"{video.path}: no frame of it can be decoded; encode it again")
        shown, made = None, ()
        for frame in _nearest(first, decoded, times):
            if frame is not shown:
                shown, made = frame, tuple(_fit(frame, stream, size) for size in sizes)
            yield made


def _jump(video, time, stack):
    """The first frame decoded from the keyframe before a time, and those after it; None if that gives other
    frames than decoding from the beginning: without an index, or where frames refer to what is before the jump.
    """
    container, stream = stack.enter_context(_open(video.path))
    decoded = _decode(video.path, container, stream)
    try:
        container.seek(int(max(time - _SEEK_MARGIN, video.start) / stream.time_base), stream=stream)
        first = next(decoded, None)
    except (InputError, av.FFmpegError):
        return None, None, None
    usable = first is not None and first.time <= time and not first.is_corrupt
    return (first, decoded, stream) if usable else (None, None, None)


def read_clip(video: Video, size: tuple[int, int], *, fps: float, frames: int, start: int = 0) -> np.ndarray:
    """One clip, uint8 [F, H, W, 3]; the arguments are those of `read_frames`."""
    return np.stack([made for (made,) in read_frames(video, [size], fps=fps, start=start, frames=frames)])


@contextlib.contextmanager
def _open(path):
    path = pathlib.Path(path)
    if not path.is_file():
        there = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file" + (f", {did_you_mean(path.name, there)}" if there else ""))
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes)")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path}: no video that FFmpeg can read ({_reason(error)})") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise InputError(f"{path}: no video stream in it, only {kinds}")
        if container.format.name == "tty":
            raise InputError(f"{path}: a text file, no video")
        stream = streams[0]
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"err_detect": "explode"}  # or damage is painted over
        yield container, stream


def _reason(error):
    return getattr(error, "strerror", None) or str(error)


def _times(path, container, stream):
    """Times of all frames, sorted, in seconds, and the end of the last one."""
    times, end, damaged = [], 0.0, 0
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                raise InputError(f"{path}: its frames carry no times; remux it into mp4 or mkv")
            damaged += packet.is_corrupt
            time = float(packet.pts * packet.time_base)
            times.append(time)
            end = max(end, time + float((packet.duration or 0) * packet.time_base))
    except av.FFmpegError as error:
        raise InputError(f"{path}: cut off or damaged after {len(times)} frames ({_reason(error)})") from error
    if not times:
        raise InputError(f"{path}: there is no frame in it")
    times.sort()
    declared = _declared_end(stream)
    if damaged or (len(times) > 1 and end + _MISSING_SECONDS < declared):
        raise InputError(f"{path}: cut off or damaged: {end:.1f} of {declared:.1f} seconds are there")
    return times, end


def _declared_end(stream):
    """Where the header says that the pictures end, in seconds; 0 if it does not say."""
    if stream.duration:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    parts = stream.metadata.get("DURATION", "").split(":")  # Matroska's tag, hours:minutes:seconds
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


def _decode(path, container, stream):
    """Frames in the order shown."""
    last = None
    try:
        for frame in container.decode(stream):
            if frame.pts is None:
                raise InputError(f"{path}: its frames carry no times; remux it into mp4 or mkv")
            last = frame.time
            yield frame
    except av.FFmpegError as error:
        where = "at its first frame" if last is None else f"after {last:.2f} s"
        raise InputError(f"{path}: damaged {where} ({_reason(error)}); encode it again") from error


def _nearest(first, following, times):
    """For each of the ascending times, the frame nearest to it; of two equally near, the earlier."""
    frame, after = first, next(following, None)
    for time in times:
        while after is not None and abs(after.time - time) < abs(frame.time - time) - 1e-5:
            frame, after = after, next(following, None)
        yield frame


def _quarter_turns(frame):
    """How often to turn the stored frame by 90 degrees, counter-clockwise, to show it."""
    return round(frame.rotation / 90) % 4


def _shown_size(frame, stream):
    """(width, height) after rotation, with square pixels."""
    pixel = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1
    width, height = round(frame.width * float(pixel)), frame.height
    return (height, width) if _quarter_turns(frame) % 2 else (width, height)


def _fit(frame, stream, size):
    """A decoded frame as uint8 [H, W, 3]: upright, covering, cropped around the centre."""
    turns = _quarter_turns(frame)
    shown_width, shown_height = _shown_size(frame, stream)
    H, W = size
    # The share of the shown width and height that the target's aspect ratio keeps.
    keep_x = min(1.0, shown_height * W / (shown_width * H))
    keep_y = min(1.0, shown_width * H / (shown_height * W))
    if turns % 2:
        keep_x, keep_y, H, W = keep_y, keep_x, W, H
    margin_x, margin_y = frame.width * (1 - keep_x) / 2, frame.height * (1 - keep_y) / 2
    box = (margin_x, margin_y, frame.width - margin_x, frame.height - margin_y)
    pixels = Image.fromarray(_to_rgb(frame)).resize((W, H), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.ascontiguousarray(np.rot90(np.asarray(pixels), turns))


def _to_rgb(frame):
    """Full-range RGB, uint8 [H, W, 3]."""
    matrix = None
    if frame.colorspace == _UNSPECIFIED:  # what players assume: BT.709 for HD, BT.601 below
        matrix = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
    interpolation = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    try:
        return frame.to_ndarray(format="rgb24", src_colorspace=matrix, interpolation=interpolation)
    except (av.FFmpegError, ValueError) as error:
        raise InputError(f"pixel format {frame.format.name} can't be converted ({error})") from error


def write_clip(path: pathlib.Path, frames: np.ndarray, *, fps: float) -> None:
    """Write a clip as H.264 in mp4, full colour resolution, or a single frame as PNG if the name says so.

    Args:
      path: ends in .mp4, or in .png for one frame; the name appears once the file is whole.
      frames: uint8 [F, H, W, 3].
      fps: frames a second.
    """
    if path.suffix == ".png":
        if len(frames) != 1:
            raise InputError(f"{path}: a PNG holds one frame, not {len(frames)}")
        with atomic_write(path) as partial:
            Image.fromarray(frames[0]).save(partial)
        return
    options = {"crf": "8", "preset": "ultrafast", "g": "16"}
    with atomic_write(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        rate = fractions.Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.codec_context.thread_count = 1
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.MPEG
        for frame in frames:
            rgb = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(rgb.reformat(format="yuv444p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())
