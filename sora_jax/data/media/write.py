"""Write clips as files."""

import fractions
import io
import pathlib

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write


def encoder() -> str:
    """What encodes videos, for people. Raises: ValueError if FFmpeg came without H.264."""
    av.codec.Codec("libx264", "w")
    return f"H.264 of FFmpeg {av.ffmpeg_version_info}"


def write_clip(path: pathlib.Path, frames: np.ndarray, *, fps: float) -> None:
    """Write a clip as H.264 in mp4, in full colour resolution, or a single frame as PNG.

    Args:
      path: ends in .mp4, or in .png for one frame; the file appears once it is complete.
      frames: uint8 [F, H, W, 3].
      fps: frames per second.
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


def recompressed(frames: np.ndarray, crf: int) -> np.ndarray:
    """Frames [F, H, W, 3] uint8 as they come back from H.264 at this constant rate factor; sides are even."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": f"{crf}", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
