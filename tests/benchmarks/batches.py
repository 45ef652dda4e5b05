"""How much sooner many prompts are sampled together than one by one.

Run: PYTHONPATH=. python tests/benchmarks/batches.py --prompts=64 --frames=17,9

The same prompts and noise: each in a run of the solver of its own, and together. Seconds of the clock and of the
processor, without compiling; one by one the first few alone are made, and their seconds scaled. With --commands so
many are also made by a command each, as a script without batches would do it. Differences are of the decoded
frames, in levels of 255.
"""

import argparse
import collections
import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.generate.generator import load_generator, video_size
from sora_jax.generate.sampling.batches import Batches, Progress
from sora_jax.generate.sampling.clips import Clip, Noise
from sora_jax.models.autoencoder.streaming import decode_stream
from sora_jax.worlds.shapes import SHIPPED_MODEL
from sora_jax.worlds.shapes.prompt_suite import make_prompts

MAIN = "import sys; from sora_jax.cli.main import main; sys.exit(main())"


def sampled(generator, clips, together: bool, first_run=False):
    """(latents of each clip, seconds of the clock and of the processor)."""
    groups = [clips] if together else [[clip] for clip in clips]
    found, began = [], (time.perf_counter(), time.process_time())
    for group in groups:
        batches, progress = Batches(), Progress()
        numbers = [batches.add(generator, clip, progress) for clip in group]
        batches.plan()
        found += [batches.latents(number) for number in (numbers[:1] if first_run else numbers)]
    return found, np.subtract((time.perf_counter(), time.process_time()), began)


def levels(generator, a, b) -> np.ndarray:
    """Differences of two videos' frames, flat."""
    shown = [
        np.concatenate(list(decode_stream(generator.autoencoder_params, generator.autoencoder, one)))
        for one in (a, b)
    ]
    return np.abs(shown[0].astype(int) - shown[1]).reshape(-1)


def by_commands(checkpoint, prompts) -> float:
    """Seconds of a command for each prompt."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for prompt in prompts:
            arguments = [f"--checkpoint={checkpoint}", f"--prompt={prompt}", f"--out={folder}/one.mp4"]
            subprocess.run([sys.executable, "-c", MAIN, "sample", *arguments], check=True, capture_output=True)
        return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=pathlib.Path, default=SHIPPED_MODEL)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--frames", default="17", help="lengths that take turns")
    parser.add_argument("--alone", type=int, default=6, help="prompts that are sampled one by one")
    parser.add_argument("--commands", type=int, default=0, help="prompts that are sampled by a command each")
    asked = parser.parse_args()
    lengths = [int(frames) for frames in asked.frames.split(",")]
    with jax.set_mesh(make_mesh(MeshSettings())):
        generator = load_generator(asked.checkpoint)
        own = generator.settings.sample
        size = video_size(own)
        prompts = make_prompts(asked.prompts, size=size, frames=lengths[0], fps=own.fps)
        clips = [
            Clip(prompt, dataclasses.replace(own, frames=lengths[n % len(lengths)]), Noise(0, n))
            for n, prompt in enumerate(prompts)
        ]
        few = clips[: max(asked.alone, len(lengths))]
        for clip in few[: len(lengths)]:
            sampled(generator, [clip], together=False)  # compiles
        sampled(generator, clips, together=True, first_run=True)  # compiles
        alone, seconds = sampled(generator, few, together=False)
        whole = seconds * len(clips) / len(few)
        made, batched = sampled(generator, clips, together=True)
        print(f"{len(clips)} prompts of {asked.frames} frames, seconds of the clock and of the processor")
        print(f"one by one: {whole[0]:.1f} and {whole[1]:.1f}")
        ratios = whole / batched
        print(
            f"together: {batched[0]:.1f} and {batched[1]:.1f}, {ratios[0]:.2f} and {ratios[1]:.2f} times as fast"
        )
        apart = np.concatenate([levels(generator, a, b) for a, b in zip(alone, made, strict=False)])
        shares = collections.Counter(np.minimum(apart, 4).tolist())
        told = ", ".join(
            f"{level}{'+' * (level == 4)}: {shares[level] / len(apart):.2%}" for level in sorted(shares)
        )
        print(f"levels that a pixel differs by: {told}; at most {apart.max()}, on average {apart.mean():.3f}")
    if asked.commands:
        seconds = by_commands(asked.checkpoint, prompts[: asked.commands]) * len(prompts) / asked.commands
        print(f"a command for each: {seconds:.1f} s of the clock: {seconds / batched[0]:.2f} times as long")


if __name__ == "__main__":
    main()
