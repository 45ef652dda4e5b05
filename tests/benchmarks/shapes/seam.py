"""Draw the frames around the seam of loops, or around another frame of videos, to be looked at.

    python tests/benchmarks/shapes/seam.py red.mp4 blue.mp4 --out=seam.png [--at=16] [--frames=10]

A row for each video, half of its frames from before the seam; the title is its prompt.
"""

import argparse
import pathlib

import numpy as np

from sora_jax.evaluate.benchmark import read_video
from sora_jax.generate.output.writer import read_metadata
from sora_jax.report.figures import draw_contact_sheet


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=pathlib.Path, nargs="+")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--at", type=int, default=0, help="the frame that comes after the seam")
    parser.add_argument("--frames", type=int, default=10, help="of them half before the seam")
    asked = parser.parse_args()
    first = asked.at - asked.frames // 2
    strips = [np.roll(read_video(path), -first, axis=0)[: asked.frames] for path in asked.videos]
    prompts = [read_metadata(path)["prompt"] for path in asked.videos]
    draw_contact_sheet(asked.out, strips, prompts, columns=1, frames=asked.frames)


if __name__ == "__main__":
    main()
