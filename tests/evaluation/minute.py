"""What of its prompt a long video of the shapes world shows, ten seconds by ten seconds.

    python tests/evaluation/minute.py red.mp4 blue.mp4 ... [--out=minutes.png]

Each ten seconds are read in pieces of 17 frames, one after the other. Ways and speeds are not counted: a thing
that has turned at a wall goes another way than its prompt said. --out: a picture, twelve frames of each video.
"""

import argparse
import pathlib

import numpy as np

from sora_jax.data.clips import probe
from sora_jax.data.shapes_detector import read_scene
from sora_jax.evaluate.pictures import draw_contact_sheet
from sora_jax.evaluate.shapes import agreement
from sora_jax.evaluate.subject import read_video
from sora_jax.generate.writer import read_metadata

SECONDS, PIECE = 10, 17
LASTING = ("shape", "colour", "size", "background", "count")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=pathlib.Path, nargs="+")
    parser.add_argument("--out", type=pathlib.Path)
    asked = parser.parse_args()
    shown: dict[int, list] = {}
    videos, prompts = [], []
    for path in asked.videos:
        video, fps, prompt = read_video(path), probe(path).fps, read_metadata(path)["prompt"]
        videos.append(video)
        prompts.append(prompt)
        for start in range(0, len(video) - PIECE + 1, PIECE):
            found = agreement(prompt, read_scene(video[start : start + PIECE], fps=fps))
            shown.setdefault(int(start / fps // SECONDS), []).append([found[name] for name in LASTING])
    print(f"{'seconds':10}", *(f"{name:>10}" for name in (*LASTING, "all these")))
    for number, found in sorted(shown.items()):
        shares = [*np.mean(found, axis=0), np.mean(np.all(found, axis=1))]
        span = f"{SECONDS * number:3} to {SECONDS * (number + 1):3}"
        print(span, *(f"{100 * share:8.1f} %" for share in shares))
    if asked.out:
        draw_contact_sheet(asked.out, videos, prompts, columns=1, frames=12)


if __name__ == "__main__":
    main()
