"""Makes docs/images/samples.webp, the moving picture of the README, from samples of the shapes model.

sora-jax sample --prompts=docs/images/samples.txt --seed=1 --out=samples
python docs/images/samples.py samples
"""

import pathlib
import sys

import numpy as np

from sora_jax.evaluate.benchmark import read_video
from sora_jax.generate.output.writer import write_webp

COLUMNS, SCALE, GAP = 4, 2, 8  # samples in a line; pixels of the picture for one of a sample; pixels between two
FPS = 12


def grid(videos: list[np.ndarray]) -> np.ndarray:
    """Videos [F, H, W, 3] side by side on white, [F, h, w, 3] uint8."""
    videos = [video.repeat(SCALE, axis=1).repeat(SCALE, axis=2) for video in videos]
    F, H, W, _ = videos[0].shape
    lines = -(-len(videos) // COLUMNS)
    canvas = np.full((F, lines * (H + GAP) - GAP, COLUMNS * (W + GAP) - GAP, 3), 255, np.uint8)
    for place, video in enumerate(videos):
        top, left = place // COLUMNS * (H + GAP), place % COLUMNS * (W + GAP)
        canvas[:, top : top + H, left : left + W] = video
    return canvas


if __name__ == "__main__":
    paths = sorted(pathlib.Path(sys.argv[1]).glob("*.mp4"))
    write_webp(pathlib.Path(__file__).with_suffix(".webp"), grid([read_video(path) for path in paths]), FPS)
