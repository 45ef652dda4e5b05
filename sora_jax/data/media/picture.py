"""Pictures and animations, by Pillow."""

import contextlib
import os
import time
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from sora_jax.core.errors import InputError
from sora_jax.data.media import orientation
from sora_jax.data.media.options import Options
from sora_jax.data.media.pixels import Frame, over_background
from sora_jax.data.media.timeline import Timeline

_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # of other formats only the first picture is read
_EXIF_ORIENTATION = 0x0112
# Browsers show a frame that declares less than the first for the second; both in seconds.
_LEAST_DURATION, _DEFAULT_DURATION = 0.011, 0.1


def read_picture_timeline(path: os.PathLike, kind: str, options: Options) -> tuple[Timeline, Frame]:
    """The times of the frames of a picture or an animation, and the first frame.

    Args:
      path: the file.
      kind: Pillow's name of its format, as `recognise` returns it.
      options: how to decode.
    Raises: InputError if it is damaged or too large.
    """
    times, end, first = [], 0.0, None
    for image, seconds, duration in _walk(path, kind, options):
        first = first or _frame(path, image, seconds, options)
        times.append(seconds)
        end = seconds + duration
    period = float(np.median(np.diff(times))) if len(times) > 1 else end
    return Timeline(np.array(times), end, derived=0, parts=1, period=period), first


def decode_picture(path: os.PathLike, kind: str, options: Options) -> Iterator[Frame]:
    """The frames in their order; arguments and errors: as for `read_picture_timeline`."""
    for image, seconds, _ in _walk(path, kind, options):
        yield _frame(path, image, seconds, options)


def _walk(path, kind, options):
    """Pillow's image at each of its frames, when it is shown, and for how long; 0 s for a still picture."""
    limits, shown, spent = options.limits, 0.0, 0.0
    start = time.monotonic()
    with _explain(path, limits), Image.open(path, formats=(kind,)) as image:
        limits.check_pixels(path, *image.size)
        count = getattr(image, "n_frames", 1) if kind in _ANIMATED else 1
        limits.check_frames(path, count)
        first = 1 if count > 1 and image.info.get("default_image") else 0  # an APNG's picture for old programs
        for number in range(first, count):
            if number:
                image.seek(number)
                limits.check_pixels(path, *image.size)
            image.load()
            spent += time.monotonic() - start
            limits.check_seconds(path, spent)
            duration = _duration(image) if count - first > 1 else 0.0
            yield image, shown, duration
            shown += duration
            start = time.monotonic()


def _duration(image):
    seconds = float(image.info.get("duration") or 0) / 1000
    return seconds if seconds >= _LEAST_DURATION else _DEFAULT_DURATION


@contextlib.contextmanager
def _explain(path, limits):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: at most {limits.pixels:,} pixels are taken") from error
    except Exception as error:  # Pillow's readers raise nearly any exception for a damaged file
        raise InputError(f"{path}: cut off or damaged ({str(error) or type(error).__name__})") from error


def _frame(path, image, seconds, options):
    shown_as = orientation.of_exif(image.getexif().get(_EXIF_ORIENTATION))
    pixels = _to_rgb(path, image, options.background)
    height, width, _ = pixels.shape
    return Frame(seconds, width, height, shown_as, pixel_aspect=1.0, to_rgb=lambda: pixels)


def _to_rgb(path, image, background):
    """RGB, uint8 [H, W, 3]; transparent pixels over the background."""
    if image.mode.startswith("I"):  # grey of 16 bits
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.mode == "F":
        raise InputError(f"{path}: its pixels are floating-point numbers; convert it to PNG")
    if image.has_transparency_data:
        return over_background(image, background)
    return np.asarray(image.convert("RGB"))
