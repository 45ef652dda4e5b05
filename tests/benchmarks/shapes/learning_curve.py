"""How a training on the shapes world comes on: what share of held-out prompts its newest checkpoint shows.

    python tests/benchmarks/shapes/learning_curve.py runs/shapes [--samples=48] [--frames=17] [--steps=20]

Each call samples all prompts at once, in less than a minute on 2 cores, adds a line to the run's adherence.jsonl
and draws all its lines, adherence.png, with a sheet of samples beside it; so it is called while a run goes on.
"""

import argparse
import collections
import dataclasses
import json
import pathlib

import jax
import numpy as np
from matplotlib.figure import Figure

from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.core.storage import atomic_write
from sora_jax.generate.generator import load_generator, video_size
from sora_jax.generate.sampling.clips import Noise
from sora_jax.generate.sampling.pipeline import sample_latents
from sora_jax.models.autoencoder.streaming import decode_stream
from sora_jax.report.figures import INK, PAPER, draw_contact_sheet
from sora_jax.worlds.shapes.detector import read_scene
from sora_jax.worlds.shapes.prompt_suite import (
    ALL,
    ATTRIBUTES,
    SEED,
    agreement,
    make_prompts,
    percent,
    shares,
    verdict,
)
from sora_jax.worlds.shapes.renderer import MOTIONS, sample_scene

AT_ONCE = 50  # videos in one batch


def measure(generator, sample, count):
    """({attribute: share}, what became of single things that were to move, prompts, videos, agreements)."""
    prompts = make_prompts(count, size=video_size(sample), frames=sample.frames, fps=sample.fps)
    groups = [prompts[first : first + AT_ONCE] for first in range(0, count, AT_ONCE)]
    latents = [
        one
        for n, group in enumerate(groups)
        for one in sample_latents(generator, group, sample, Noise(0, n * AT_ONCE))
    ]
    coder = generator.autoencoder_params, generator.autoencoder
    videos = [np.concatenate(list(decode_stream(*coder, one))) for one in latents]
    reads = [read_scene(video, fps=sample.fps) for video in videos]
    found = [agreement(prompt, read) for prompt, read in zip(prompts, reads, strict=True)]
    ways = collections.Counter()
    for number, read in enumerate(reads):
        things = sample_scene(SEED, number, held_out=True).things
        if len(things) == 1 and things[0].motion != "still" and sample.frames > 1:
            ways[_way(things[0].motion, read)] += 1
    return {name: value["share"] for name, value in shares(found).items()}, ways, prompts, videos, found


def _way(asked, read):
    if read is None or len(read.things) != 1:
        return "not read"
    made = read.things[0].motion
    opposite = tuple(-step for step in MOTIONS[asked])
    return "as asked" if made == asked else "opposite" if MOTIONS[made] == opposite else "another"


def draw(path, rows):
    """The share of each attribute over updates, a panel for each number of frames."""
    lengths = sorted({row["frames"] for row in rows})
    figure = Figure(figsize=(6.4 * len(lengths), 3.8), layout="constrained", facecolor=PAPER)
    for panel, frames in zip(figure.subplots(1, len(lengths), squeeze=False)[0], lengths, strict=True):
        mine = sorted((row for row in rows if row["frames"] == frames), key=lambda row: row["step"])
        for number, name in enumerate((*ATTRIBUTES, ALL)):
            points = [(row["step"], 100 * row["shares"][name]) for row in mine if name in row["shares"]]
            if points:
                style = {"color": INK, "linewidth": 2.5} if name == ALL else {"color": f"C{number}"}
                panel.plot(*zip(*points, strict=True), ".-", label=name, **style)
        panel.set(title=f"{frames} frames" if frames > 1 else "pictures", xlabel="update", ylim=(0, 100))
        panel.set_xlim(left=0)
        panel.set_ylabel("held-out prompts that are shown, %")
        panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=144, format="png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--frames", type=int, help="default: the checkpoint's own")
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    generator = load_generator(asked.workdir)
    sample = generator.settings.sample
    sample = dataclasses.replace(sample, steps=asked.steps, frames=asked.frames or sample.frames)
    values, ways, prompts, videos, found = measure(generator, sample, asked.samples)
    row = {"step": generator.step, "frames": sample.frames, "samples": asked.samples}
    row |= {"shares": values, "ways": dict(ways)}
    log = asked.workdir / "adherence.jsonl"
    with log.open("a") as file:
        file.write(json.dumps(row) + "\n")
    draw(asked.workdir / "adherence.png", [json.loads(line) for line in log.read_text().splitlines()])
    titles = [f"{verdict({'found': f})} {prompt}" for f, prompt in zip(found, prompts, strict=True)]
    draw_contact_sheet(asked.workdir / f"samples-{sample.frames}.png", videos[:24], titles[:24], columns=3)
    told = ", ".join(f"{name} {percent(share)}" for name, share in values.items())
    print(f"update {generator.step}, {sample.frames} frames: {told}; {dict(ways)}")


if __name__ == "__main__":
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        main()
