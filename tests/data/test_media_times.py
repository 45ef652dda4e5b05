"""Times of frames: each frame comes once, in its order, in every container, whatever its time stamps are."""

import fractions
import pathlib

import numpy as np
import pytest
from media_files import HEIGHT, WIDTH, grey, numbers, remux, write_animation, write_video

from sora_jax.core.errors import InputError
from sora_jax.data.media.options import Options
from sora_jax.data.media.video import count_frames, probe, read_clip, read_frames, span_lengths

RATES = ("24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60", "120")
REORDERED = {"preset": "ultrafast", "bf": "2", "crf": "10"}  # with B-frames
ENCODERS = {
    "mp4": ("libx264", REORDERED),
    "mov": ("libx264", REORDERED),
    "mkv": ("libx264", REORDERED),
    "ts": ("libx264", REORDERED),
    "avi": ("libx264", REORDERED),
    "webm": ("libvpx", {"deadline": "realtime", "crf": "4"}),
}


def greys(count, first=0):
    return [grey(i) for i in range(first, first + count)]


def every_frame(video, fps):
    return numbers(read_clip(video, (HEIGHT, WIDTH), fps=float(fps), frames=count_frames(video, float(fps))))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("container", ENCODERS)
def test_each_frame_comes_once_at_every_rate_in_every_container(tmp_path, container, rate):
    codec, options = ENCODERS[container]
    path = write_video(tmp_path / f"a.{container}", greys(17), rate, codec, options=options)
    video, fps = probe(path), float(fractions.Fraction(rate))
    assert video.frames == 17
    assert video.fps == pytest.approx(fps, rel=0.01)
    assert every_frame(video, fps) == list(range(17))
    assert every_frame(video, fps / 2) == list(range(0, 16, 2))


def avi_mpeg4(folder):
    options = {"bf": "2", "qmin": "1", "qmax": "2"}
    return write_video(folder / "a.avi", greys(17), codec="mpeg4", options=options), 0


def avi_h264(folder):
    return write_video(folder / "a.avi", greys(17), options=REORDERED), 17


def matroska_with_stamps_of_decoding(folder):
    """As a remuxed AVI: the stamp of each packet is when it is decoded."""
    source = write_video(folder / "b.mkv", greys(17), options=REORDERED)
    order = iter(range(17))

    def decoding_order(pts, dts):
        number = next(order)
        return number * 62, number * 62

    return remux(source, folder / "a.mkv", decoding_order), 17


def stamps_that_repeat(folder):
    """Frames 3, 7 and 11 have the stamp of the frame before them."""
    times = [(i - (i in (3, 7, 11))) / 16 for i in range(17)]
    source = write_video(folder / "b.mkv", greys(17), options={"preset": "ultrafast", "bf": "0"})
    given = iter(times)

    def repeat(pts, dts):
        return (round(next(given) * 1000),) * 2

    return remux(source, folder / "a.mkv", repeat), 17


@pytest.mark.parametrize("write", [avi_mpeg4, avi_h264, matroska_with_stamps_of_decoding, stamps_that_repeat])
def test_wrong_stamps_are_derived_and_counted(tmp_path, write):
    path, derived = write(tmp_path)
    video = probe(path)
    assert every_frame(video, 16) == list(range(17))
    assert video.notes == ((f"with time stamps that had to be derived, frames: {derived}",) if derived else ())
    # Reading from the middle gives the same frames.
    assert numbers(read_clip(video, (HEIGHT, WIDTH), fps=16.0, frames=4, start=9)) == [9, 10, 11, 12]


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mpg", "mpeg2video", {"qmin": "1", "qmax": "2"}),
        ("ts", "libx264", REORDERED),
        ("flv", "libx264", REORDERED),
    ],
)
@pytest.mark.parametrize("count", [16, 33])
def test_parts_joined_end_to_end_are_read_to_the_end(tmp_path, suffix, codec, options, count):
    parts = [
        write_video(tmp_path / f"{first}.{suffix}", greys(count, first), 25, codec, options=options).read_bytes()
        for first in (0, 1, 2)
    ]
    if suffix == "flv":  # its header comes once
        parts[1:] = [part[13:] for part in parts[1:]]
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(parts))
    video = probe(path)
    assert video.notes[-1] == "joined of parts: 3"
    assert every_frame(video, 25) == [i % 36 for first in range(3) for i in range(first, first + count)]


def test_a_recording_that_begins_between_keyframes_begins_with_its_first_whole_frame(tmp_path):
    path = write_video(tmp_path / "a.ts", greys(34), 25, options={**REORDERED, "g": "12"})
    data = path.read_bytes()
    path.write_bytes(data[:376] + data[len(data) // 6 // 188 * 188 :])
    video = probe(path)
    assert video.notes == ("cut off at the beginning, frames: 9",)
    assert every_frame(video, 25) == list(range(12, 34))


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [("mp4", "libx264", REORDERED), ("wmv", "wmv2", {}), ("flv", "libx264", REORDERED)],
)
def test_a_joined_file_that_can_not_be_read_on_is_told(tmp_path, suffix, codec, options):
    path = write_video(tmp_path / f"a.{suffix}", greys(17), 25, codec, options=options)
    assert probe(path).notes == ()
    path.write_bytes(2 * path.read_bytes())
    assert probe(path).notes == ("joined to another file, which is left out, MiB: 0.0",)
    assert every_frame(probe(path), 25) == list(range(17))


def test_a_gap_in_time_cuts_a_video_and_is_not_filled_with_stills(tmp_path):
    times = [i / 16 for i in range(20)] + [3600 + i / 16 for i in range(9)] + [7200]
    path = write_video(tmp_path / "a.mkv", greys(30), times=times, options={"preset": "ultrafast"})
    video = probe(path)
    assert span_lengths(video, 16.0) == [20, 9, 1]
    assert video.notes == ("cut at gaps in time: 2",)
    assert every_frame(video, 16) == list(range(30))
    assert len(probe(path, Options(max_gap=5000.0)).spans) == 1
    assert video.duration == pytest.approx(30 / 16, abs=0.01)


def test_slow_videos_are_not_cut_at_each_frame(tmp_path):
    path = write_animation(tmp_path / "a.gif", greys(6), rate=0.5)
    video = probe(path)
    assert (len(video.spans), video.fps) == (1, pytest.approx(0.5))
    assert every_frame(video, 1) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize(
    ("suffix", "settings"),
    [("webp", {"lossless": True}), ("gif", {}), ("apng", {}), ("png", {}), ("avif", {"quality": 100})],
)
def test_animated_pictures_are_videos(tmp_path, suffix, settings):
    path = tmp_path / f"a.{suffix}"
    write_animation(path, greys(12), rate=10, **settings)
    video = probe(path)
    assert (video.frames, video.fps) == (12, pytest.approx(10, rel=0.01))
    assert every_frame(video, 10) == list(range(12))
    assert every_frame(video, 5) == list(range(0, 12, 2))


def test_a_header_tells_length_and_rate_without_reading_the_file(tmp_path):
    path = write_video(tmp_path / "a.mp4", greys(33), options={**REORDERED, "g": "33"})
    whole, header = probe(path), probe(path, header_only=True)
    assert (header.frames, header.fps, header.width, header.height) == (33, 16.0, WIDTH, HEIGHT)
    assert count_frames(header, 16.0) == count_frames(whole, 16.0) == 33
    broken = pathlib.Path(tmp_path, "b.mp4")
    data = path.read_bytes()
    broken.write_bytes(data[: data.index(b"mdat") + 4] + bytes(8) + data[data.index(b"mdat") + 12 :])
    with pytest.raises(InputError, match="damaged"):
        list(read_frames(probe(broken, header_only=True), [(HEIGHT, WIDTH)], fps=16.0))


def test_frames_that_can_not_be_decoded_are_never_replaced_by_stills(tmp_path):
    """The last second of the packets is empty: the video is not filled up with its last good frame."""
    source = write_video(tmp_path / "b.mkv", greys(64), options={"preset": "ultrafast", "g": "16"})
    path = tmp_path / "a.mkv"
    data = source.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(InputError, match="cut off or damaged"):
        video = probe(path)
        list(read_frames(video, [(HEIGHT, WIDTH)], fps=16.0))
    assert np.array_equal(grey(0), grey(36))  # the levels of `grey` recur
