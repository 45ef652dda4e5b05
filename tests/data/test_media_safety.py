"""Files that lie, attack or are damaged: each is one line with its name, and nothing else is opened or filled."""

import http.server
import os
import pathlib
import resource
import struct
import threading
import time
import zipfile
import zlib

import numpy as np
import pytest
from media_files import HEIGHT, WIDTH, grey, numbers, write_animation, write_video
from PIL import Image

from sora_jax.core.errors import InputError
from sora_jax.data.media.options import Limits, Options
from sora_jax.data.media.video import check_decodable, probe, read_clip

FAST = {"preset": "ultrafast"}


def greys(count):
    return [grey(i) for i in range(count)]


@pytest.fixture
def secret(tmp_path):
    """A real video elsewhere, which no other file may lead to."""
    (tmp_path / "elsewhere").mkdir()
    return write_video(tmp_path / "elsewhere/secret.mp4", greys(5), options=FAST)


@pytest.fixture
def server():
    """A web server that notes which addresses are asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


DISGUISED = {
    "an HLS playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n",
    "a concat script": "ffconcat version 1.0\nfile '{target}'\n",
    "an SDP session description": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "an SVG drawing": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>',
    "a DASH manifest": "<MPD><Period><BaseURL>{target}</BaseURL></Period></MPD>",
    "an XML file": '<?xml version="1.0"?><MPD><BaseURL>{target}</BaseURL></MPD>',
    "an HTML page": "<!DOCTYPE html><video src='{target}'></video>",
    "text": "file:{target}\n",
}


@pytest.mark.parametrize("suffix", ["mp4", "png", "gif"])
@pytest.mark.parametrize("kind", DISGUISED)
def test_scripts_that_name_other_files_are_refused_and_open_nothing(tmp_path, secret, server, kind, suffix):
    address, asked = server
    for target in (secret, f"{address}/a.mp4"):
        path = tmp_path / f"a.{suffix}"
        path.write_text(DISGUISED[kind].format(target=target))
        with pytest.raises(InputError, match=f"a.{suffix}: not a known video or picture: {kind}"):
            probe(path)
    assert asked == []


def test_a_file_is_what_it_begins_with(tmp_path):
    """A polyglot: a picture with a playlist and an archive behind it is a picture."""
    Image.fromarray(grey(3)).save(tmp_path / "a.png")
    path = tmp_path / "a.mp4"
    path.write_bytes((tmp_path / "a.png").read_bytes() + b"\n#EXTM3U\n/etc/hostname\n")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.txt", "x")
    assert numbers(read_clip(probe(path), (HEIGHT, WIDTH), fps=16.0, frames=1)) == [3]


def test_archives_and_other_formats_are_refused_by_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.mp4", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2**24))
    (tmp_path / "a.exr").write_bytes(b"\x76\x2f\x31\x01" + bytes(100))
    (tmp_path / "a.mkv").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for name, reason in {"bomb.mp4": "zip archive", "a.exr": "OpenEXR", "a.mkv": "Git LFS pointer"}.items():
        with pytest.raises(InputError, match=f"{name}: not a known video or picture: an? {reason}"):
            probe(tmp_path / name)


def png_header(width, height):
    """A picture of a few bytes that claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def claims_many_frames(path, count):
    """An mp4 whose tables claim so many frames of a byte each."""
    data = bytearray(write_video(path, greys(5), options=FAST).read_bytes())
    at = data.index(b"stts")
    data[at + 12 : at + 16] = struct.pack(">I", count)
    at = data.index(b"stsz")
    data[at + 8 : at + 16] = struct.pack(">II", 1, count)
    path.write_bytes(data)


def claims_many_pixels(path, side):
    """An mp4 of a real small stream that the container says is huge."""
    data = bytearray(write_video(path, greys(5), options=FAST).read_bytes())
    at = data.index(b"avc1", data.index(b"stsd"))
    data[at + 28 : at + 32] = struct.pack(">HH", side, side)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("bomb.png", lambda path: path.write_bytes(png_header(60_000, 60_000))),
        ("wide.png", lambda path: path.write_bytes(png_header(2**31 - 1, 1))),
        ("frames.mp4", lambda path: claims_many_frames(path, 10**9)),
        ("nested.tif", lambda path: path.write_bytes(b"II*\x00\x08\x00\x00\x00" + b"\xff" * 4000)),
    ],
)
def test_bombs_cost_neither_memory_nor_time(tmp_path, name, write):
    write(tmp_path / name)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(InputError, match=name):
        check_decodable(probe(tmp_path / name))
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # in KiB


LIMITED = {
    "video": lambda path: write_video(path, greys(40), options=FAST),
    "animation": lambda path: write_animation(path, greys(30), lossless=True),
}


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(pixels=WIDTH * HEIGHT - 1), "a.*: 64x48; at most 3,071 pixels are taken"),
        (Limits(frames=20), "a.*: more than 20 frames; no more are taken"),
        (Limits(seconds=0.0), "a.*: decoding takes longer than 0 s"),
    ],
)
@pytest.mark.parametrize("kind", LIMITED)
def test_limits_hold_while_decoding(tmp_path, kind, limits, reason):
    path = tmp_path / {"video": "a.mp4", "animation": "a.webp"}[kind]
    LIMITED[kind](path)
    check_decodable(probe(path))
    with pytest.raises(InputError, match=reason):
        probe(path, Options(limits=limits))


def test_frames_that_grow_within_a_stream_are_stopped(tmp_path):
    """The header's size is small; a later frame is larger than the limit."""
    small = write_video(tmp_path / "small.ts", greys(20), options=FAST).read_bytes()
    large = write_video(tmp_path / "large.ts", [grey(i, 480, 640) for i in range(20)], options=FAST).read_bytes()
    (tmp_path / "a.ts").write_bytes(small + large)
    with pytest.raises(InputError, match=r"a\.ts: "):
        check_decodable(probe(tmp_path / "a.ts", Options(limits=Limits(pixels=10_000))))


def latin1_title(folder):
    path = folder / "a.avi"
    data = write_video(folder / "b.avi", greys(5), codec="mpeg4", metadata={"title": "cafXX"}).read_bytes()
    path.write_bytes(data.replace(b"cafXX", b"caf\xe9 "))
    return path


def latin1_name(folder):
    path = pathlib.Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4"))
    path.write_bytes(write_video(folder / "b.mp4", greys(5), options=FAST).read_bytes())
    return path


def strange_name(folder):
    path = folder / "-i concat:a|b %03d\n\x1b[31m.mp4"
    path.write_bytes(write_video(folder / "b.mp4", greys(5), options=FAST).read_bytes())
    return path


@pytest.mark.parametrize("write", [latin1_title, latin1_name, strange_name])
def test_names_and_metadata_of_any_bytes_are_read(tmp_path, write):
    assert numbers(read_clip(probe(write(tmp_path)), (HEIGHT, WIDTH), fps=16.0, frames=5)) == list(range(5))


def patched(old, new, suffix="mp4", **settings):
    def write(path):
        data = write_video(path, greys(5), **{"options": FAST, **settings}).read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))

    return write


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (patched(b"avc1" + bytes(7) + b"\x01", b"zzzz" + bytes(7) + b"\x01"), "no decoder for its codec"),
        (lambda path: claims_many_pixels(path, 0), None),
        (lambda path: write_video(path, greys(5), options=FAST, aspect="1/60000"), None),
    ],
)
def test_strange_headers_are_one_line_or_are_read(tmp_path, write, reason):
    path = tmp_path / "a.mp4"
    write(path)
    try:
        video = probe(path)
        clip = read_clip(video, (16, 16), fps=16.0, frames=1)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        assert reason is None or reason in str(error)
    else:
        assert reason is None
        assert clip.shape == (1, 16, 16, 3)


def test_no_damage_ends_in_anything_but_a_line(tmp_path):
    """Bytes changed, lost and added at random, in one file of each kind."""
    draw = np.random.default_rng(0)
    originals = {
        "mp4": write_video(tmp_path / "o.mp4", greys(9), options=FAST),
        "mkv": write_video(tmp_path / "o.mkv", greys(9), options=FAST),
        "avi": write_video(tmp_path / "o.avi", greys(9), codec="mpeg4"),
        "ts": write_video(tmp_path / "o.ts", greys(9), options=FAST),
        "webp": write_animation(tmp_path / "o.webp", greys(9), lossless=True),
        "gif": write_animation(tmp_path / "o.gif", greys(9)),
        "png": write_animation(tmp_path / "o.png", greys(9)),
    }
    read = 0
    for suffix, original in originals.items():
        data = original.read_bytes()
        for _ in range(12):
            damaged = bytearray(data)
            for place in draw.integers(0, len(data), draw.integers(1, 20)):
                damaged[place] = draw.integers(256)
            path = tmp_path / f"damaged.{suffix}"
            path.write_bytes(damaged[: draw.integers(1, len(data) + 1)] if draw.random() < 0.5 else damaged)
            try:
                check_decodable(probe(path))
                read += 1
            except InputError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert read < 12 * len(originals)
