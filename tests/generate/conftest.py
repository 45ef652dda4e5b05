"""A workdir to sample from, and files to give."""

import numpy as np
import pytest
from PIL import Image
from test_tasks import write_run

from sora_jax.data.media.write import write_clip
from sora_jax.worlds.shapes.renderer import render, sample_scene


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A workdir, two videos of other sizes and rates than the model's, pictures, a mask and a story."""
    folder = tmp_path_factory.mktemp("home")
    write_run(folder / "run", text=1.0, first_frame=1.0)
    write_clip(folder / "wide.mp4", render(sample_scene(3, 1), frames=40, size=(96, 128), fps=24), fps=24)
    write_clip(folder / "tall.mp4", render(sample_scene(3, 2), frames=20, size=(80, 64)), fps=16)
    write_clip(folder / "small.mp4", render(sample_scene(3, 3), frames=11, size=(32, 48)), fps=16)
    Image.fromarray(render(sample_scene(3, 4), frames=1, size=(64, 64))[0]).save(folder / "picture.png")
    mask = np.zeros((96, 128), np.uint8)
    mask[20:60, 30:70] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(255 - 0 * mask).save(folder / "white.png")
    (folder / "sound.mp3").write_bytes(b"no video")
    (folder / "story.txt").write_text("a bird\n\na rabbit\n")
    return folder
