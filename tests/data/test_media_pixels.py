"""Pixels of frames: upright, over the background where they are transparent, deinterlaced, from any file."""

import pathlib
import struct

import numpy as np
import pytest
from media_files import HEIGHT, WIDTH, grey, write_animation, write_video
from PIL import Image, ImageOps

from sora_jax.core.errors import InputError
from sora_jax.data.media.options import Options
from sora_jax.data.media.video import count_frames, probe, read_clip

# As EXIF numbers orientations: (a, b, c, d) of a display matrix.
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def corner():
    """A picture that looks different in each orientation."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[: HEIGHT // 2, : WIDTH // 2] = 200
    pixels[: HEIGHT // 4, : WIDTH // 4] = (255, 0, 0)
    return pixels


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


def set_display_matrix(path, matrix):
    a, b, c, d = (value * 65536 for value in matrix)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def oriented_file(folder, kind, orientation):
    path = folder / f"a.{kind}"
    if kind in ("mp4", "mov"):
        write_video(path, [corner()] * 2, pixel_format="yuv444p", options={"crf": "4"})
        set_display_matrix(path, MATRICES[orientation])
    else:
        options = {"jpg": {"quality": 95}, "webp": {"lossless": True}, "avif": {"quality": 95}}.get(kind, {})
        Image.fromarray(corner()).save(path, exif=exif_of(orientation), **options)
    return path


@pytest.mark.parametrize("orientation", MATRICES)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "avif", "mp4", "mov"])
def test_every_orientation_is_shown_upright(tmp_path, kind, orientation):
    image = Image.fromarray(corner())
    image.getexif()[0x112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    video = probe(oriented_file(tmp_path, kind, orientation))
    assert (video.height, video.width) == upright.shape[:2]
    frame = read_clip(video, (video.height, video.width), fps=16.0, frames=1)[0]
    assert np.abs(frame - upright).mean() < 3


def test_an_orientation_that_does_not_exist_is_upright(tmp_path):
    Image.fromarray(corner()).save(tmp_path / "a.jpg", exif=exif_of(77), quality=95)
    video = probe(tmp_path / "a.jpg")
    frame = read_clip(video, (HEIGHT, WIDTH), fps=16.0, frames=1)[0]
    assert np.abs(frame.astype(int) - corner()).mean() < 3


def transparent(count=3):
    """Magenta that is fully transparent, around an opaque grey rectangle."""
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[..., :3] = 255, 0, 255
    pixels[12:36, 16:48] = 128, 128, 128, 255
    return [pixels] * count


TRANSPARENT = {
    "png": lambda path: Image.fromarray(transparent()[0]).save(path),
    "webp": lambda path: Image.fromarray(transparent()[0]).save(path, lossless=True, exact=True),
    "tiff": lambda path: Image.fromarray(transparent()[0]).save(path),
    "gif": lambda path: write_animation(path, transparent()),
    "apng": lambda path: write_animation(path, transparent()),
    "avif": lambda path: write_animation(path, transparent(), quality=95),
    "palette.png": lambda path: Image.fromarray(transparent()[0]).quantize(8).save(path),
    "animated.webp": lambda path: write_animation(path, transparent(), lossless=True, exact=True),
    "vp9.webm": lambda path: write_video(
        path, transparent(), codec="libvpx-vp9", pixel_format="yuva420p", options={"lossless": "1"}
    ),
    "vp8.webm": lambda path: write_video(
        path, transparent(), codec="libvpx", pixel_format="yuva420p", options={"crf": "4", "auto-alt-ref": "0"}
    ),
    "prores.mov": lambda path: write_video(
        path, transparent(), codec="prores_ks", pixel_format="yuva444p10le", options={"profile": "4444"}
    ),
    "png.mov": lambda path: write_video(path, transparent(), codec="png", pixel_format="rgba"),
}


@pytest.mark.parametrize("background", [(0, 0, 0), (250, 128, 10)])
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_lies_under_transparency_is_never_seen(tmp_path, kind, background):
    path = tmp_path / (kind if "." in kind else f"a.{kind}")
    TRANSPARENT[kind](path)
    video = probe(path, Options(background=background))
    frame = read_clip(video, (HEIGHT, WIDTH), fps=16.0, frames=1)[0].astype(int)
    assert np.abs(frame[2:8, 2:10] - background).max() <= 6
    assert np.abs(frame[20:28, 24:40] - 128).max() <= 6


def test_half_transparent_pixels_are_mixed_with_the_background(tmp_path):
    pixels = np.full((HEIGHT, WIDTH, 4), (200, 100, 0, 128), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    frame = read_clip(probe(tmp_path / "a.png"), (HEIGHT, WIDTH), fps=16.0, frames=1)[0]
    assert np.abs(frame.astype(int) - (100, 50, 0)).max() <= 1


def interlaced(path):
    """A bar that moves by 2 pixels from field to field."""

    def field(i):
        pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
        pixels[:, 2 * i : 2 * i + 12] = 230
        return pixels

    frames = []
    for i in range(0, 20, 2):
        woven = field(i)
        woven[1::2] = field(i + 1)[1::2]
        frames.append(woven)
    options = {"crf": "8", "x264-params": "tff=1", "preset": "ultrafast"}
    return write_video(path, frames, 25, options=options)


def combing(frame):
    """The mean difference of neighbouring rows at the edge of the bar."""
    return np.abs(np.diff(frame[12:36, :24, 0].astype(int), axis=0)).mean()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_interlaced_videos_are_deinterlaced_unless_the_config_says_no(tmp_path, suffix):
    path = interlaced(tmp_path / f"a.{suffix}")
    mended, as_stored = probe(path), probe(path, Options(deinterlace=False))
    assert (mended.notes, as_stored.notes) == (("deinterlaced",), ("interlaced, left so",))
    assert count_frames(mended, 25.0) == 10
    clips = [read_clip(video, (HEIGHT, WIDTH), fps=25.0, frames=10) for video in (mended, as_stored)]
    assert combing(clips[0][2]) < 2 < 10 < combing(clips[1][2])
    places = [int(np.argmax(frame[24, :, 0] > 128)) for frame in clips[0]]
    assert places == pytest.approx(list(range(0, 40, 4)), abs=2)  # in their order, none twice


@pytest.mark.parametrize(
    ("mode", "save"),
    [
        ("L", {}),
        ("1", {}),
        ("P", {}),
        ("CMYK", {}),
        ("I;16", {}),
        ("RGB", {"compression": "tiff_lzw"}),
        (
            "RGB",
            {"compression": "tiff_adobe_deflate", "dpi": (300, 300), "description": "a picture", "software": "x"},
        ),
        ("RGB", {"compression": "jpeg"}),
    ],
)
def test_tiffs_of_all_ordinary_kinds_are_read(tmp_path, mode, save):
    image = Image.fromarray(grey(18))  # level 128
    if mode == "I;16":
        image = Image.fromarray(np.full((HEIGHT, WIDTH), 128 * 256, np.uint16))
    elif mode != "RGB":
        image = image.point(lambda _: 255) if mode == "1" else image
        image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.tif", **save)
    frame = read_clip(probe(tmp_path / "a.tif"), (HEIGHT, WIDTH), fps=16.0, frames=1)[0]
    assert np.abs(frame.astype(int) - (255 if mode == "1" else 128)).max() <= 2


def test_pictures_of_floating_point_numbers_and_heic_say_what_to_do(tmp_path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.float32)).save(tmp_path / "a.tif")
    pathlib.Path(tmp_path, "a.heic").write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100))
    with pytest.raises(InputError, match=r"a\.tif: its pixels are floating-point numbers; convert it to PNG"):
        probe(tmp_path / "a.tif")
    with pytest.raises(
        InputError, match=r"a\.heic: a HEIC picture, which can't be read; convert it to JPEG or PNG"
    ):
        probe(tmp_path / "a.heic")
