"""Inputs of sampling are opened as `prepare` opens files: upright, mended, and what was mended is told."""

import io

import numpy as np
import pytest
import rich.console
from media_files import grey, numbers, remux, write_video
from PIL import Image, ImageOps

from sora_jax.data.media.options import Options
from sora_jax.generate.inputs.input_video import open_input_video, read_picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_shown_as_their_exif_orientation_says(tmp_path, orientation):
    image = Image.new("RGB", (64, 64))
    image.paste((255, 0, 0), (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg"))).astype(int)
    shown = read_picture(tmp_path / "a.jpg", (64, 64), Options(), rich.console.Console(quiet=True))
    assert np.abs(shown - upright).mean() < 3


def test_what_was_mended_of_an_input_is_told(tmp_path):
    """Time stamps of decoding, as in a remuxed AVI."""
    source = write_video(
        tmp_path / "b.mkv", [grey(i) for i in range(9)], options={"preset": "ultrafast", "bf": "2"}
    )
    order = iter(range(9))
    path = remux(source, tmp_path / "a.mkv", lambda pts, dts: (62 * next(order),) * 2)
    said = io.StringIO()
    opened = open_input_video(path, None, 16.0, 1, Options(), rich.console.Console(file=said, width=200))
    assert numbers(np.stack(list(opened.read()))) == list(range(9))
    assert "with time stamps that had to be derived, frames: 9" in said.getvalue()
