"""The sound of a file, copied into another one without decoding it."""

import dataclasses
import pathlib
from collections.abc import Iterator

import av

from sora_jax.core.errors import InputError
from sora_jax.data.media.formats import FFMPEG
from sora_jax.data.media.video import Video

# Codecs that mp4 holds.
COPIED = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")


@dataclasses.dataclass(frozen=True)
class AudioTrack:
    """The sound of a file.

    demuxer: FFmpeg's name of its format.
    start: time in the file at which the video begins, in seconds.
    streams: indices of its streams of sound.
    """

    path: pathlib.Path
    demuxer: str
    start: float
    streams: tuple[int, ...]

    def open(self):
        """The open container."""
        try:
            path = str(self.path.absolute())  # an absolute path is never taken for an address
            return av.open(path, format=self.demuxer, options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"{self.path}: its sound can't be read ({error})") from error


def audio_of(video: Video) -> tuple[AudioTrack | None, str]:
    """(the sound of a video, or None; why some of it is left out, or "")."""
    library, demuxer = video.format
    if library != FFMPEG:
        return None, ""
    track = AudioTrack(video.path, demuxer, video.start, ())
    with track.open() as container:
        codecs = {stream.index: stream.codec_context.name for stream in container.streams.audio}
    if not codecs:
        return None, ""
    if len(video.spans) > 1:
        return None, f"note: {video.path}: its sound is left out, as the video is cut at gaps in time"
    known = tuple(index for index, name in codecs.items() if name in COPIED)
    lost = sorted({name for name in codecs.values() if name not in COPIED})
    note = (
        f"note: {video.path}: sound in {', '.join(lost)} is left out; mp4 holds {', '.join(COPIED)}"
        if lost
        else ""
    )
    return (dataclasses.replace(track, streams=known) if known else None), note


class AudioCopy:
    """Copies the packets of a track into an open container, up to the time that the video has reached.

    Made before the first packet of the container is written.
    """

    def __init__(self, track: AudioTrack, container):
        self._track, self._container = track, container
        self._source = track.open()
        streams = [self._source.streams[index] for index in track.streams]
        self._copies = {stream.index: container.add_stream_from_template(stream) for stream in streams}
        self._packets = self._shifted(self._source.demux(streams))
        self._next = next(self._packets, None)

    def _shifted(self, packets) -> Iterator[tuple[float, av.Packet]]:
        """(time, packet) of those that do not come before the video."""
        for packet in packets:
            if packet.pts is None or packet.dts is None:
                continue
            shift = round(self._track.start / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            if packet.pts >= 0 and packet.dts >= 0:
                yield float(packet.pts * packet.time_base), packet

    def until(self, seconds: float):
        """Copy what is heard before this time."""
        while self._next is not None and self._next[0] < seconds:
            packet = self._next[1]
            packet.stream = self._copies[packet.stream.index]
            self._container.mux(packet)
            self._next = next(self._packets, None)

    def close(self):
        self._source.close()
