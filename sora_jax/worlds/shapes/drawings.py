"""Seven small animations that the shapes model has never seen, drawn by code, with a caption for each."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageDraw

from sora_jax.data.media.write import write_clip
from sora_jax.worlds.shapes.renderer import BACKGROUNDS

CANVAS = 256  # pixels, drawn large and scaled down, which smooths edges
MIDDLE = CANVAS / 2
GROUNDS = ("black", "grey", "white", "blue")


def _ring(x, y, radii, turn=0.0):
    """Corners of a star: the radii take turns."""
    count = len(radii)
    angles = [2 * math.pi * (i / count + turn) - math.pi / 2 for i in range(count)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _disc(draw, x, y, radius, colour):
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def star(draw, phase):
    draw.polygon(_ring(MIDDLE, MIDDLE, [100, 42] * 5, phase / 5), fill="#ffd21f")


def heart(draw, phase):
    size = 60 + 22 * math.sin(2 * math.pi * phase)
    for side in (-1, 1):
        _disc(draw, MIDDLE + side * 0.62 * size, 105, 0.68 * size, "#e8324a")
    corners = [(-1.18, 0.36), (1.18, 0.36), (0, 1.7)]
    draw.polygon([(MIDDLE + x * size, 105 + y * size) for x, y in corners], fill="#e8324a")


def rocket(draw, phase):
    y = 190 - 110 * phase
    flame = 34 + 14 * math.sin(8 * math.pi * phase)
    draw.polygon([(MIDDLE - 18, y + 50), (MIDDLE + 18, y + 50), (MIDDLE, y + 50 + flame)], fill="#ff8a1f")
    draw.polygon([(MIDDLE - 52, y + 52), (MIDDLE, y - 10), (MIDDLE + 52, y + 52)], fill="#d7263d")
    draw.ellipse((MIDDLE - 28, y - 70, MIDDLE + 28, y + 56), fill="#dfe6ee")
    _disc(draw, MIDDLE, y - 20, 13, "#2f6fe4")


def fish(draw, phase):
    x, wave = 80 + 96 * phase, 22 * math.sin(6 * math.pi * phase)
    draw.polygon([(x - 40, MIDDLE), (x - 92, MIDDLE - 38 + wave), (x - 92, MIDDLE + 38 + wave)], fill="#ff7a1a")
    draw.ellipse((x - 60, MIDDLE - 40, x + 60, MIDDLE + 40), fill="#ff9d2e")
    _disc(draw, x + 32, MIDDLE - 10, 8, "#101010")


def flower(draw, phase):
    draw.line((MIDDLE, MIDDLE, MIDDLE, 250), fill="#2f9e44", width=14)
    reach = 22 + 40 * math.sin(math.pi * phase)
    for x, y in _ring(MIDDLE, 105, [reach] * 6):
        _disc(draw, x, y, 30, "#e64fb0")
    _disc(draw, MIDDLE, 105, 26, "#ffd21f")


def face(draw, phase):
    _disc(draw, MIDDLE, MIDDLE, 96, "#ffd21f")
    draw.arc((70, 90, 186, 196), 20, 160, fill="#5a3a00", width=12)
    _disc(draw, 94, 100, 13, "#5a3a00")
    if phase % 0.5 < 0.25:
        _disc(draw, 162, 100, 13, "#5a3a00")
    else:
        draw.line((146, 100, 178, 100), fill="#5a3a00", width=10)


def clock(draw, phase):
    _disc(draw, MIDDLE, MIDDLE, 104, "#7a4fd0")
    _disc(draw, MIDDLE, MIDDLE, 86, "#f7f4ff")
    turn = 2 * math.pi * phase
    draw.line((MIDDLE, MIDDLE, MIDDLE + 70 * math.sin(turn), MIDDLE - 70 * math.cos(turn)), fill="#222", width=14)
    draw.line((MIDDLE, MIDDLE, MIDDLE + 40, MIDDLE + 24), fill="#222", width=14)


DRAWINGS: dict[str, Callable] = {
    "a spinning star": star,
    "a beating heart": heart,
    "a rocket that flies up": rocket,
    "a fish that swims to the right": fish,
    "a flower that opens": flower,
    "a face that winks": face,
    "a clock that ticks": clock,
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An animation over a plain background, uint8 [F, H, W, 3], and whether it is shown to the model."""

    caption: str
    video: np.ndarray
    shown: bool


def draw_all(*, frames: int, size: int) -> list[Drawing]:
    """Each drawing on each background; on one background, another for each drawing, it is kept from training."""
    made = []
    for number, (words, drawing) in enumerate(DRAWINGS.items()):
        for place, background in enumerate(GROUNDS):
            video = animate(drawing, background, frames=frames, size=size)
            made.append(Drawing(f"{words} on a {background} background", video, place != number % len(GROUNDS)))
    return made


def animate(drawing: Callable, background: str, *, frames: int, size: int) -> np.ndarray:
    """A drawing over a plain background, uint8 [F, H, W, 3]."""
    video = []
    for frame in range(frames):
        canvas = Image.new("RGB", (CANVAS, CANVAS), BACKGROUNDS[background][0])
        drawing(ImageDraw.Draw(canvas), frame / frames)
        video.append(np.asarray(canvas.resize((size, size), Image.Resampling.BOX)))
    return np.stack(video)


def write_drawings(folder: pathlib.Path, drawings: Iterable[Drawing], *, fps: float) -> None:
    """Write each drawing as mp4, with its caption beside it; files that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        path = folder / f"{drawing.caption.replace(' ', '-')}.mp4"
        if not path.exists():
            write_clip(path, drawing.video, fps=fps)
            path.with_suffix(".txt").write_text(f"{drawing.caption}\n")
