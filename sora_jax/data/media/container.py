"""Videos, by FFmpeg: their time stamps and their decoded frames, whatever is wrong with the file."""

import contextlib
import dataclasses
import fractions
import mmap
import os
import pathlib
import time
from collections.abc import Iterator

import av
import av.filter
import numpy as np
from av.stream import Disposition

from sora_jax.core.errors import InputError
from sora_jax.data.media import orientation
from sora_jax.data.media.options import Options
from sora_jax.data.media.pixels import Frame, video_to_rgb
from sora_jax.data.media.timeline import Timeline, make_timeline

_MISSING_SECONDS = 0.5  # a file whose frames end this long before its header says was cut off
_MOST_PARALLEL_PIXELS = 2**24  # of frames that are decoded at the same time
_SEEK_MARGIN = 0.5  # seconds; containers index by decoding time, a few frames before the time of showing
# Demuxers that ignore other files joined to one, and where a header tells them: start, length.
_READ_ONCE = {"mov": (4, 8), "flv": (0, 9), "asf": (0, 16)}
# FFmpeg's own decoders of these codecs ignore alpha.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class Container:
    """An open video file. Use it as a context manager.

    Args:
      path: the file.
      demuxer: FFmpeg's name of its format, as `recognise` returns it.
      options: how to decode.
    Raises: InputError if FFmpeg can't open it, or it has no video that can be decoded.
    """

    def __init__(self, path: os.PathLike, demuxer: str, options: Options):
        self.path, self.options, self._demuxer = path, options, demuxer
        limits = options.limits
        try:
            self._container = av.open(
                str(pathlib.Path(path).absolute()),  # an absolute path is never taken for an address
                format=demuxer,
                options={"protocol_whitelist": "file"},
                timeout=(limits.read_seconds, limits.read_seconds),
                metadata_errors="replace",
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{path}: no video that FFmpeg can read ({_reason(error, limits)})") from error
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._container)
            self.stream = self._choose_stream()
            self._decoder = self._open_decoder()
            self._stack = stack.pop_all()

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *exception):
        self._stack.close()

    def _choose_stream(self):
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({s.type for s in self._container.streams})) or "nothing"
            raise InputError(f"{self.path}: no video stream in it, only {kinds}")
        stream = next((s for s in streams if s.codec_context is not None), None)
        if stream is None:
            raise InputError(f"{self.path}: FFmpeg has no decoder for its codec; encode it again, as H.264")
        if stream.codec_context.width * stream.codec_context.height == 0:
            raise InputError(f"{self.path}: its frames have no width or no height")
        return stream

    def _open_decoder(self):
        decoder, limits = self.stream.codec_context, self.options.limits
        limits.check_pixels(self.path, decoder.width, decoder.height)
        if self.stream.metadata.get("alpha_mode") == "1" and decoder.name in _ALPHA_DECODERS:
            decoder = av.CodecContext.create(_ALPHA_DECODERS[decoder.name], "r")
        # Threads for frames hold a frame each.
        decoder.thread_type = "AUTO" if decoder.width * decoder.height <= _MOST_PARALLEL_PIXELS else "SLICE"
        # explode: or damage is painted over.
        decoder.options = {"err_detect": "explode", "max_pixels": str(limits.pixels)}
        return decoder

    def read_timeline(self, *, in_order: bool) -> Timeline:
        """The times of all frames, without decoding.

        Args:
          in_order: whether decoded frames come with rising stamps.
        Raises: InputError if the file is cut off or damaged.
        """
        stamps, damaged, end, limits = [], 0, 0, self.options.limits
        try:
            for packet in self._container.demux(self.stream):
                if packet.size == 0 or packet.is_discard:
                    continue
                damaged += packet.is_corrupt
                stamps.append((packet.pts, packet.dts, packet.duration or 0))
                end = max(end, (packet.pos or 0) + packet.size)
                limits.check_frames(self.path, len(stamps))
        except av.FFmpegError as error:
            reason = _reason(error, limits)
            raise InputError(f"{self.path}: cut off or damaged after {len(stamps)} frames ({reason})") from error
        if not stamps:
            raise InputError(f"{self.path}: there is no frame in it")
        rate = float(self.stream.average_rate or self.stream.guessed_rate or 0)
        timeline = make_timeline(stamps, float(self.stream.time_base), rate, in_order=in_order)
        timeline = dataclasses.replace(timeline, bytes_left_out=self._bytes_left_out(end))
        declared = self._declared_end()
        short = timeline.parts == 1 and len(stamps) > 1 and timeline.end + _MISSING_SECONDS < declared
        # Where parts are joined, the first packet of a part is flagged: its counter does not follow.
        if damaged >= timeline.parts or short:
            there = f"{timeline.end:.1f} of {declared:.1f} seconds are there"
            raise InputError(f"{self.path}: cut off or damaged: {there}")
        return timeline

    def _bytes_left_out(self, end):
        """Size of another file that is joined to this one and that FFmpeg does not read; `end`: of its frames."""
        if self._demuxer not in _READ_ONCE:
            return 0
        start, length = _READ_ONCE[self._demuxer]
        with (
            pathlib.Path(self.path).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            at = data.find(data[start : start + length], end)
            return len(data) - (at - start) if at >= 0 else 0

    def declared_timeline(self) -> Timeline | None:
        """The times of all frames as the header states them; None if it does not state length and rate."""
        rate = float(self.stream.average_rate or self.stream.guessed_rate or 0)
        end = self._declared_end() or float(self._container.duration or 0) / av.time_base
        if not rate or not end:
            return None
        start = float((self.stream.start_time or 0) * self.stream.time_base)
        count = max(1, round((end - start) * rate))
        self.options.limits.check_frames(self.path, count)
        return Timeline(start + np.arange(count) / rate, end, derived=0, parts=1, period=1 / rate)

    def _declared_end(self):
        """Where the header says that the frames end, in seconds; 0 if it does not say."""
        stream = self.stream
        if stream.duration:
            return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
        parts = stream.metadata.get("DURATION", "").split(":")  # Matroska's tag, hours:minutes:seconds
        try:
            hours, minutes, seconds = (float(part) for part in parts)
        except ValueError:
            return 0.0
        return 3600 * hours + 60 * minutes + seconds

    def seek(self, seconds: float):
        """Go to the keyframe before a time. Raises: av.FFmpegError if the file can't do that."""
        self._container.seek(int((seconds - _SEEK_MARGIN) / self.stream.time_base), stream=self.stream)

    def decode(self) -> Iterator[av.VideoFrame]:
        """Frames in the order in which they are shown. Raises: InputError if one is damaged."""
        count, spent, limits = 0, 0.0, self.options.limits
        frames = self._decode()
        while True:
            start = time.monotonic()
            try:
                frame = next(frames, None)
            except av.FFmpegError as error:
                where = f"after {count} frames" if count else "at its first frame"
                reason = _reason(error, limits)
                raise InputError(f"{self.path}: damaged {where} ({reason}); encode it again") from error
            spent += time.monotonic() - start
            limits.check_seconds(self.path, spent)
            if frame is None:
                return
            count += 1
            limits.check_frames(self.path, count)
            yield frame

    def _decode(self):
        for packet in self._container.demux(self.stream):
            yield from self._decoder.decode(packet)

    def frame(self, raw: av.VideoFrame, seconds: float, shown_as: int) -> Frame:
        """A decoded frame with its time and orientation."""
        aspect = float(self.stream.sample_aspect_ratio or self.stream.codec_context.sample_aspect_ratio or 1)
        return Frame(
            time=seconds,
            width=raw.width,
            height=raw.height,
            orientation=shown_as,
            pixel_aspect=aspect if aspect > 0 else 1.0,
            to_rgb=lambda: video_to_rgb(raw, self.options.background, self.path),
        )


def _reason(error, limits):
    if isinstance(error, av.ExitError):
        return f"reading takes longer than {limits.read_seconds:g} s"
    return getattr(error, "strerror", None) or str(error)


def orientation_of(raw: av.VideoFrame) -> int:
    """The orientation that a frame's display matrix means; 1 if it has none."""
    matrix = raw.side_data.get("DISPLAYMATRIX")
    return 1 if matrix is None else orientation.of_matrix(bytes(matrix))


def deinterlace(frames: Iterator[tuple[av.VideoFrame, float]]) -> Iterator[tuple[av.VideoFrame, float]]:
    """The same frames at the same times; those that are flagged as interlaced go through FFmpeg's bwdif filter."""
    graph, layout, times = None, None, []
    for frame, seconds in frames:
        if graph is not None and layout != (frame.width, frame.height, frame.format.name):
            yield from _pull(graph, times, end=True)
            graph = None
        if graph is None and not frame.interlaced_frame:
            yield frame, seconds
            continue
        if graph is None:
            graph, times = _filter_graph(frame), []
            layout = (frame.width, frame.height, frame.format.name)
        frame.pts, frame.time_base = len(times), fractions.Fraction(1)
        times.append(seconds)
        graph.vpush(frame)
        yield from _pull(graph, times)
    if graph is not None:
        yield from _pull(graph, times, end=True)


def _filter_graph(frame):
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=fractions.Fraction(1)
    )
    bwdif, sink = graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")
    source.link_to(bwdif)
    bwdif.link_to(sink)
    graph.configure()
    return graph


def _pull(graph, times, *, end=False):
    """The frames that a filter graph has finished."""
    if end:
        graph.vpush(None)
    while True:
        try:
            frame = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield frame, times[int(frame.pts * frame.time_base)]
