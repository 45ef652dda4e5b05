"""Recognise a media file by its first bytes. Only the formats listed here are ever opened, whatever a file's name.

FFmpeg's own guess is never used: playlists and scripts (HLS, DASH, concat, SDP) would make it open other files and
network addresses.
"""

import pathlib

from sora_jax.core.errors import InputError

FFMPEG, PILLOW = "ffmpeg", "pillow"

_VIDEO = "mp4 m4v mov mkv webm avi mpg mpeg mpe m2v vob ts mts m2ts wmv asf flv f4v 3gp 3g2 ogv mxf ivf y4m gif"
_IMAGE = "png apng jpg jpeg jpe jfif webp bmp tif tiff avif heic heif"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEO.split())
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _IMAGE.split())

_HEAD = 4096  # bytes that are looked at

# (offset, bytes, library, its name of the format)
_SIGNATURES = (
    (0, b"\x1a\x45\xdf\xa3", FFMPEG, "matroska"),
    (0, b"\x00\x00\x01\xba", FFMPEG, "mpeg"),
    (0, b"\x00\x00\x01\xb3", FFMPEG, "mpegvideo"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", FFMPEG, "asf"),
    (0, b"FLV\x01", FFMPEG, "flv"),
    (0, b"OggS", FFMPEG, "ogg"),
    (0, b"DKIF", FFMPEG, "ivf"),
    (0, b"YUV4MPEG2 ", FFMPEG, "yuv4mpegpipe"),
    (0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02", FFMPEG, "mxf"),
    (0, b"\x89PNG\r\n\x1a\n", PILLOW, "PNG"),
    (0, b"\xff\xd8\xff", PILLOW, "JPEG"),
    (0, b"GIF87a", PILLOW, "GIF"),
    (0, b"GIF89a", PILLOW, "GIF"),
    (0, b"BM", PILLOW, "BMP"),
    (0, b"II*\x00", PILLOW, "TIFF"),
    (0, b"MM\x00*", PILLOW, "TIFF"),
    (0, b"II+\x00", PILLOW, "TIFF"),
    (0, b"MM\x00+", PILLOW, "TIFF"),
)
# First boxes of QuickTime and MP4 files, after four bytes of length.
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
# Files that are often met under a video's name.
_REFUSED = (
    (b"#EXTM3U", "an HLS playlist"),
    (b"ffconcat", "a concat script"),
    (b"v=0", "an SDP session description"),
    (b"<MPD", "a DASH manifest"),
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "an HTML page: the download may have failed"),
    (b"<html", "an HTML page: the download may have failed"),
    (b"<?xml", "an XML file"),
    (b"\x76\x2f\x31\x01", "an OpenEXR picture; convert it to PNG"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"%PDF", "a PDF"),
    (b"8BPS", "a Photoshop file; convert it to PNG"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself"),
)
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def recognise(path: pathlib.Path) -> tuple[str, str]:
    """The library that opens a file, FFMPEG or PILLOW, and its name of the format.

    Raises: InputError if the file is absent, empty, can't be read, or is of no format listed here.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    if not head:
        raise InputError(f"{path}: the file is empty (0 bytes)")
    for offset, signature, library, name in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return library, name
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WEBP"):
        return (FFMPEG, "avi") if head[8:12] == b"AVI " else (PILLOW, "WEBP")
    if head[4:8] in _MOV_BOXES:
        return _iso_media(path, head)
    if head[:3] == b"\x00\x00\x01" and b"\x00\x00\x01\xba" in head:  # a program stream without its beginning
        return FFMPEG, "mpeg"
    if _is_transport_stream(head):
        return FFMPEG, "mpegts"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = next((kind for begin, kind in _REFUSED if text.startswith(begin.lower())), None)
    if kind is None:
        kind = "text" if head.isascii() and b"\x00" not in head else f"it begins with {head[:8].hex(' ')}"
    raise InputError(f"{path}: not a known video or picture: {kind}")


def _iso_media(path, head):
    if head[4:8] != b"ftyp":
        return FFMPEG, "mov"
    size = min(int.from_bytes(head[:4], "big"), 256)
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, size, 4))}
    if brands & {b"avif", b"avis"}:
        return PILLOW, "AVIF"
    if head[8:12] in _HEIC:
        raise InputError(f"{path}: a HEIC picture, which can't be read; convert it to JPEG or PNG")
    return FFMPEG, "mov"


def _is_transport_stream(head):
    """Whether sync bytes recur at the distance of MPEG transport packets."""
    return any(
        all(head[start + i * size] == 0x47 for i in range(3) if start + i * size < len(head))
        for size in (188, 192, 204)
        for start in range(min(size, len(head) - size))
    )
