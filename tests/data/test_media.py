"""Reading clips: exact times, no stretching, every kind of file, every kind of fault."""

import fractions

import av
import numpy as np
import pytest
from PIL import Image

from sora_jax.core.errors import InputError
from sora_jax.data.media.video import count_frames, probe, read_clip, read_frames


def picture(i, height=48, width=64):
    """A grey level that tells the frame's number, with a red corner on top at the left."""
    pixels = np.full((height, width, 3), 20 + 3 * i, np.uint8)
    pixels[: height // 4, : width // 4] = (255, 0, 0)
    return pixels


def write_video(path, times, *, size=(48, 64), turn=None, pixel_format="yuv420p", aspect=None, options=None):
    """A real video whose frame i, shown at times[i] seconds, is `picture(i)`."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "8", "g": "10"})
        stream.codec_context.time_base = fractions.Fraction(1, 1000)
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if turn is not None:
            stream.set_display_rotation(turn)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(clip):
    """The number of the picture that each frame shows, read back from its grey level."""
    grey = clip[:, clip.shape[1] // 2 :, clip.shape[2] // 2 :].mean((1, 2, 3))
    return np.rint((grey - 20) / 3).astype(int).tolist()


def test_frames_are_the_nearest_in_time(tmp_path):
    path = write_video(tmp_path / "a.mp4", [i / 32 for i in range(32)])
    video = probe(path)
    assert (video.width, video.height, video.frames) == (64, 48, 32)
    assert video.fps == pytest.approx(32, rel=1e-2)
    assert count_frames(video, 16.0) == 16
    assert levels(read_clip(video, (48, 64), fps=16.0, frames=16)) == list(range(0, 32, 2))
    assert levels(read_clip(video, (48, 64), fps=8.0, frames=3, start=2)) == [8, 12, 16]


def test_variable_frame_rate_is_sampled_by_time(tmp_path):
    times = [0.0, 0.02, 0.04, 0.5, 0.52, 1.0, 1.5]
    video = probe(write_video(tmp_path / "a.mp4", times))
    clip = read_clip(video, (48, 64), fps=4.0, frames=7)
    expected = [int(np.argmin(np.abs(np.array(times) - t))) for t in np.arange(7) / 4]
    assert levels(clip) == expected


def test_clip_from_the_middle_equals_the_same_frames_of_the_whole(clips):
    for path in [*sorted(clips.glob("*.mp4")), clips / "pancake.mkv"]:
        video = probe(path)
        n = min(count_frames(video, 16.0), 60)
        whole = np.stack([made for (made,) in read_frames(video, [(18, 32)], fps=16.0, frames=n)])
        assert np.array_equal(read_clip(video, (18, 32), fps=16.0, frames=3, start=n - 5), whole[n - 5 : n - 2])
        assert whole.std() > 5


def test_real_clips_are_described_as_they_are_shown(clips):
    video = probe(clips / "carphone.mp4")  # its pixels are 128:117, so 176 columns show as 193
    assert (video.width, video.height, video.frames) == (193, 144, 120)
    assert video.fps == pytest.approx(30000 / 1001, rel=1e-3)
    assert video.duration == pytest.approx(120 * 1001 / 30000, rel=1e-3)
    assert probe(clips / "pancake.mkv").frames == 310


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_rotation_metadata_is_applied(tmp_path, turn):
    video = probe(write_video(tmp_path / "a.mp4", [0.0, 0.1], turn=turn))
    upright = np.rot90(picture(0), turn // 90)
    height, width = upright.shape[:2]
    assert (video.height, video.width) == (height, width)
    clip = read_clip(video, (height, width), fps=10.0, frames=1)
    assert np.abs(clip[0].astype(int) - upright).mean() < 6


def test_scaling_covers_and_crops_around_the_centre(tmp_path):
    pixels = np.zeros((90, 160, 3), np.uint8)
    rows, columns = np.mgrid[:90, :160]
    pixels[(rows - 45) ** 2 + (columns - 80) ** 2 < 20**2] = 255  # a disc in the middle stays a disc
    Image.fromarray(pixels).save(tmp_path / "disc.png")
    for H, W in [(60, 60), (45, 80), (64, 36)]:
        frame = read_clip(probe(tmp_path / "disc.png"), (H, W), fps=16.0, frames=1)[0, ..., 0] > 127
        width, height = frame.any(0).sum(), frame.any(1).sum()
        assert frame[H // 2, W // 2]
        assert abs(width - height) <= 1
        assert width == pytest.approx(40 * max(H / 90, W / 160), abs=2)


def test_wide_pixels_are_made_square(tmp_path):
    video = probe(write_video(tmp_path / "a.mp4", [0.0, 0.1], size=(48, 32), aspect=2))
    assert (video.width, video.height) == (64, 48)
    clip = read_clip(video, (48, 64), fps=10.0, frames=1)
    assert np.abs(clip[0].astype(int) - picture(0)).mean() < 8  # the red corner is a quarter of each side again


@pytest.mark.parametrize("pixel_format", ["yuv444p", "yuv420p10le", "yuvj420p"])
def test_every_pixel_format_gives_the_same_colours(tmp_path, pixel_format):
    video = probe(write_video(tmp_path / "a.mkv", [0.0, 0.1], pixel_format=pixel_format))
    clip = read_clip(video, (48, 64), fps=10.0, frames=2)
    assert levels(clip) == [0, 1]
    assert np.abs(clip[0].astype(int) - picture(0)).mean() < 4


def test_a_picture_is_a_video_of_one_frame(tmp_path):
    Image.fromarray(picture(3)).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x112] = 6  # orientation: turn clockwise to show
    Image.fromarray(picture(3)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    video = probe(tmp_path / "a.png")
    assert (video.frames, count_frames(video, 16.0)) == (1, 1)
    assert np.array_equal(read_clip(video, (48, 64), fps=16.0, frames=1)[0], picture(3))
    turned = read_clip(probe(tmp_path / "a.jpg"), (64, 48), fps=16.0, frames=1)[0]
    assert np.abs(turned.astype(int) - np.rot90(picture(3), -1)).mean() < 6


def test_one_frame_video_gives_one_frame(tmp_path):
    video = probe(write_video(tmp_path / "a.mp4", [0.0]))
    assert (video.frames, count_frames(video, 16.0), video.duration) == (1, 1, 0.0)
    assert levels(read_clip(video, (48, 64), fps=16.0, frames=1)) == [0]


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_bad_files_say_what_is_wrong(tmp_path, clips):
    def cut_half(source, name):
        data = source.read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])

    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 50)
    write_sound(tmp_path / "sound.mp4")
    cut_half(clips / "bikes.mp4", "no_index.mp4")
    cut_half(clips / "pancake.mkv", "half.mkv")
    head = write_video(tmp_path / "head.mp4", [i / 20 for i in range(60)], options={"movflags": "faststart"})
    cut_half(head, "half.mp4")
    for name, reason in {
        "absent.mp4": "no such file",
        "empty.mp4": "0 bytes",
        "text.mp4": "not a known video or picture: text",
        "sound.mp4": "only audio",
        "no_index.mp4": "no video that FFmpeg can read",
        "half.mkv": "cut off or damaged: 5.0 of 10.3 seconds",
        "half.mp4": "damaged at its first frame",
    }.items():
        with pytest.raises(InputError, match=reason) as error:
            probe(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)


def test_damage_in_the_middle_is_noticed(tmp_path, clips):
    data = bytearray((clips / "bikes.mp4").read_bytes())
    place = len(data) // 2
    data[place : place + 20] = bytes(reversed(data[place : place + 20]))
    (tmp_path / "flipped.mp4").write_bytes(data)
    video = probe(tmp_path / "flipped.mp4")
    with pytest.raises(InputError, match=r"flipped.mp4: damaged after \d+ frames"):
        list(read_frames(video, [(16, 16)], fps=4.0))


def test_a_span_outside_the_video_is_refused(tmp_path):
    video = probe(write_video(tmp_path / "a.mp4", [i / 16 for i in range(16)]))
    with pytest.raises(InputError, match="frames 10 to 27 of 16 at 16 fps do not exist"):
        read_clip(video, (48, 64), fps=16.0, frames=17, start=10)
