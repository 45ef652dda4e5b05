"""Small real videos and pictures of many kinds, whose frames tell their number by their grey level."""

import fractions
import pathlib

import av
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64


def grey(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Frame `number`, uint8 [H, W, 3]."""
    return np.full((height, width, 3), 20 + 6 * (number % 36), np.uint8)


def numbers(clip: np.ndarray) -> list[int]:
    """The numbers of a clip's frames, read back from their grey levels."""
    return np.rint((clip[:, 8:-8, 8:-8].astype(float).mean((1, 2, 3)) - 20) / 6).astype(int).tolist()


def write_video(path: pathlib.Path, frames, rate=16, codec="libx264", **settings) -> pathlib.Path:
    """A video of these frames (uint8 [H, W, 3 or 4]) at a constant rate.

    Args:
      settings: pixel_format, options of the codec, times of the frames in seconds in place of the rate, metadata,
        aspect of a pixel.
    """
    pixel_format, options = settings.get("pixel_format", "yuv420p"), settings.get("options", {})
    rate, times = fractions.Fraction(rate), settings.get("times")
    with av.open(str(path), "w") as container:
        container.metadata.update(settings.get("metadata", {}))
        stream = container.add_stream(codec, rate=rate, options=options)
        if "aspect" in settings:
            stream.codec_context.sample_aspect_ratio = fractions.Fraction(settings["aspect"])
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixel_format
        stream.codec_context.time_base = fractions.Fraction(1, 1000) if times else 1 / rate
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.shape[-1] == 3 else "rgba")
            frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = i, 1 / rate
            if times:
                frame.pts, frame.time_base = round(times[i] * 1000), fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_animation(path: pathlib.Path, frames, rate=16, **settings) -> pathlib.Path:
    """An animated picture of these frames (uint8 [H, W, 3 or 4]); settings: those of Pillow's writer."""
    images = [Image.fromarray(pixels) for pixels in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / rate), loop=0, **settings)
    return path


def remux(source: pathlib.Path, target: pathlib.Path, shift=lambda pts, dts: (pts, dts)) -> pathlib.Path:
    """The packets of a video in another container, without encoding again; `shift` changes their stamps."""
    with av.open(str(source)) as given, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None or packet.pts is not None:
                packet.pts, packet.dts = shift(packet.pts, packet.dts)
                packet.stream = stream
                container.mux(packet)
    return target
