"""Videos that were written are read back with PyAV and Pillow, as any player would."""

import pathlib
import resource
import subprocess
import sys
import weakref
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest

from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write
from sora_jax.generate.output.writer import VideoWriter, read_metadata, write_webp

COLOURS = np.array(
    [[220, 40, 40], [40, 60, 220], [40, 200, 80], [240, 220, 60], [255, 255, 255], [0, 0, 0]], np.uint8
)


def stripes(frames=6, height=48, width=96) -> np.ndarray:
    """Stripes of plain colours, [F, H, W, 3], that step to the left with every frame."""
    row = np.repeat(COLOURS, width // len(COLOURS), axis=0)
    return np.stack([np.broadcast_to(np.roll(row, -16 * f, axis=0), (height, width, 3)) for f in range(frames)])


def decode(path) -> tuple[np.ndarray, Fraction]:
    with av.open(path) as container:
        rate = container.streams.video[0].average_rate
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), rate


def inner(video):
    """The middle of each stripe, where halved colour does not blur."""
    return video[:, :, 8::16].astype(int)


def test_chunks_are_read_back_as_one_video(tmp_path):
    video = stripes(frames=11)
    with VideoWriter(tmp_path / "a.mp4", 16) as writer:
        for start, stop in [(0, 1), (1, 5), (5, 11)]:
            writer.write(video[start:stop])
    back, rate = decode(tmp_path / "a.mp4")
    assert writer.frames == 11 and rate == 16
    assert back.shape == video.shape
    assert np.abs(inner(back) - inner(video)).max() <= 6


def test_colours_are_tagged_as_hd_video(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 16) as writer:
        writer.write(stripes())
    with av.open(tmp_path / "a.mp4") as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert context.name == "h264" and context.pix_fmt == "yuv420p"
    assert tags == (1, 1, 1, 1)


@pytest.mark.parametrize(("fps", "rate"), [(16, 16), (29.97, Fraction(30000, 1001)), (12.5, Fraction(25, 2))])
def test_rates_are_exact(tmp_path, fps, rate):
    with VideoWriter(tmp_path / "a.mp4", fps) as writer:
        writer.write(stripes())
    assert decode(tmp_path / "a.mp4")[1] == rate


def test_an_odd_size_repeats_its_last_row_and_column(tmp_path):
    video = stripes()[:, :47, :95]
    with VideoWriter(tmp_path / "a.mp4", 16) as writer:
        writer.write(video)
    back, _ = decode(tmp_path / "a.mp4")
    assert back.shape == (6, 48, 96, 3)
    assert np.abs(inner(back)[:, :47] - inner(video)).max() <= 6
    assert np.abs(inner(back)[:, 47] - inner(back)[:, 46]).max() <= 6


def test_one_frame_is_a_video(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 16) as writer:
        writer.write(stripes(frames=1))
    assert decode(tmp_path / "a.mp4")[0].shape[0] == 1


def test_an_mp4_says_how_it_was_made(tmp_path):
    made = {"prompt": 'a "red" circle,\nmoving; größer 円', "seed": 7, "settings": {"steps": 50, "guidance": 5.0}}
    with VideoWriter(tmp_path / "a.mp4", 16, metadata=made) as writer:
        writer.write(stripes())
    back = read_metadata(tmp_path / "a.mp4")
    assert back.items() >= made.items() and back["ai_generated"] is True
    with av.open(tmp_path / "a.mp4") as container:
        assert container.metadata["title"] == made["prompt"]
        assert container.metadata["description"] == "AI-generated video"


def test_an_error_leaves_what_stood_there_before(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 16) as writer:
        writer.write(stripes())
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), VideoWriter(path, 16) as writer:
        writer.write(stripes(frames=3))
        _ = 1 / 0
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("frames", [0, 3])
def test_an_error_leaves_no_half_of_a_new_file(tmp_path, frames):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", 16) as writer:
        if frames:
            writer.write(stripes(frames=frames))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_in_one_line_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    # The limit on a file's size fails a write as a full disk does, without needing a disk of our own.
    code = f"""
import resource, numpy as np
from sora_jax.generate.output.writer import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
noise = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8)
with VideoWriter({str(path)!r}, 16) as writer:
    for _ in range(8):
        writer.write(noise)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1].startswith(f"sora_jax.core.errors.InputError: {path}: can't be written")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="reads resident memory from Linux")
def test_memory_does_not_grow_with_the_video(tmp_path):
    base = np.random.default_rng(0).integers(0, 256, (1, 24, 32, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    chunks, resident = [], []
    with VideoWriter(tmp_path / "a.mp4", 24) as writer:
        for index in range(120):
            chunk = np.roll(base.repeat(8, 0), index, axis=2)  # 1.2 MB
            writer.write(chunk)
            chunks.append(weakref.ref(chunk))
            resident.append(int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
            del chunk
            assert sum(chunk() is not None for chunk in chunks) == 0
    assert writer.frames == 960
    # 80 chunks are 94 MB of pixels.
    assert resident[-1] - resident[39] < 10e6


@pytest.mark.parametrize(
    ("chunk", "says"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "float32"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"\[2, 8, 8, 4\]"),
        (np.zeros((8, 8, 3), np.uint8), r"\[8, 8, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"\[0, 8, 8, 3\]"),
    ],
)
def test_frames_of_another_kind_are_refused(tmp_path, chunk, says):
    with pytest.raises(InputError, match=says), VideoWriter(tmp_path / "a.mp4", 16) as writer:
        writer.write(chunk)
    with pytest.raises(InputError, match=says):
        write_webp(tmp_path / "a.webp", chunk, 16)
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_of_another_size_is_refused(tmp_path):
    with (
        pytest.raises(InputError, match="32x48 after one of 96x48"),
        VideoWriter(tmp_path / "a.mp4", 16) as writer,
    ):
        writer.write(stripes())
        writer.write(stripes()[:, :, :32])


def test_a_video_of_no_frames_is_refused(tmp_path):
    with pytest.raises(InputError, match="0 frames"), VideoWriter(tmp_path / "a.mp4", 16):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_no_video_has_is_refused(tmp_path, fps):
    with pytest.raises(InputError, match="frames a second"):
        VideoWriter(tmp_path / "a.mp4", fps)


def test_paths_that_can_not_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match="videos are written as"):
        VideoWriter(tmp_path / "a.avi", 16)
    with pytest.raises(InputError, match="is a folder"), VideoWriter(tmp_path / "folder.mp4", 16):
        pass
    with pytest.raises(InputError, match="a file stands where a folder"), VideoWriter(tmp_path / "file/a.mp4", 16):
        pass


def test_a_missing_folder_is_made(tmp_path):
    with VideoWriter(tmp_path / "new/folder/a.mp4", 16) as writer:
        writer.write(stripes())
    assert (tmp_path / "new/folder/a.mp4").exists()


def test_webp_frames_and_times_are_read_back(tmp_path):
    video, path = stripes(frames=7), tmp_path / "a.webp"
    made = {"prompt": "größer 円", "seed": 3}
    write_webp(path, video, 16, metadata=made)
    times = []
    with PIL.Image.open(path) as image:
        assert image.n_frames == 7 and image.info["loop"] == 0
        for index in range(7):
            image.seek(index)
            assert (
                np.abs(inner(np.asarray(image.convert("RGB"))[None]) - inner(video[index : index + 1])).max() <= 12
            )
            times.append(image.info["duration"])
    assert sum(times) == round(7000 / 16) and set(times) == {62, 63}
    assert read_metadata(path).items() >= made.items()


def test_files_that_are_not_ours_say_so(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 100)
    (tmp_path / "noise.webp").write_bytes(b"noise" * 100)
    for name in ("noise.mp4", "noise.webp"):
        with pytest.raises(InputError, match="not a video that can be read"):
            read_metadata(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_metadata(tmp_path / "absent.mp4")
    with av.open(tmp_path / "other.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 16
        container.metadata["comment"] = "holiday"
        for frame in [av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24"), None]:
            container.mux(stream.encode(frame))
    with pytest.raises(InputError, match="not written by sora_jax"):
        read_metadata(tmp_path / "other.mp4")


def test_replacing_shows_the_file_only_when_complete(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("all of it")
        assert not path.exists()
    assert path.read_text() == "all of it"
