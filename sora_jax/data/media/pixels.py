"""Decoded frames to pixels: RGB over the background, upright, scaled and cropped."""

import dataclasses
import os
from collections.abc import Callable

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation
from PIL import Image

from sora_jax.core.errors import InputError
from sora_jax.data.media import orientation

_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED


@dataclasses.dataclass(frozen=True)
class Frame:
    """A decoded frame, as it is stored.

    time: when it is shown, in seconds.
    width, height: as stored, in pixels.
    orientation: how it is shown, as EXIF numbers it.
    pixel_aspect: width of a pixel over its height.
    to_rgb: makes its pixels, uint8 [height, width, 3].
    """

    time: float
    width: int
    height: int
    orientation: int
    pixel_aspect: float
    to_rgb: Callable[[], np.ndarray]

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) when it is upright, with square pixels."""
        width, height = max(1, round(self.width * self.pixel_aspect)), self.height
        return (width, height) if orientation.swaps_sides(self.orientation) else (height, width)


def fit(frame: Frame, size: tuple[int, int]) -> np.ndarray:
    """A frame upright, scaled to cover (H, W) and cropped around the centre: uint8 [H, W, 3]."""
    shown_height, shown_width = frame.shown_size
    H, W = size
    # The share of the shown width and height that the target's aspect ratio keeps.
    keep_x = min(1.0, shown_height * W / (shown_width * H))
    keep_y = min(1.0, shown_width * H / (shown_height * W))
    if orientation.swaps_sides(frame.orientation):
        keep_x, keep_y, H, W = keep_y, keep_x, W, H
    margin_x, margin_y = frame.width * (1 - keep_x) / 2, frame.height * (1 - keep_y) / 2
    box = (margin_x, margin_y, frame.width - margin_x, frame.height - margin_y)
    image = Image.fromarray(frame.to_rgb())
    image = image.resize((W, H), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.ascontiguousarray(orientation.make_upright(image, frame.orientation))


def video_to_rgb(frame: av.VideoFrame, background: tuple[int, int, int], path: os.PathLike) -> np.ndarray:
    """A frame of FFmpeg's as full-range RGB, uint8 [H, W, 3]; transparent pixels over the background.

    Raises: InputError, which names the path, if its pixel format can't be converted.
    """
    matrix = None
    if frame.colorspace == _UNSPECIFIED:  # what players assume: BT.709 for HD, BT.601 below
        matrix = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
    interpolation = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    try:
        pixels = frame.to_ndarray(
            format="rgba" if alpha else "rgb24", src_colorspace=matrix, interpolation=interpolation
        )
    except (av.FFmpegError, ValueError) as error:
        raise InputError(f"{path}: its pixel format {frame.format.name} can't be converted ({error})") from error
    return over_background(Image.fromarray(pixels), background) if alpha else pixels


def over_background(image: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    """An image with alpha over a background: RGB, uint8 [H, W, 3]."""
    base = Image.new("RGBA", image.size, (*background, 255))
    base.alpha_composite(image.convert("RGBA"))
    return np.asarray(base.convert("RGB"))
