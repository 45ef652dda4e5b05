"""Small versions of videos as the shapes model makes them, with its own faults: inputs that a refiner learns from.

    python tests/benchmarks/shapes/generated_inputs.py --videos=data/videos/refiner/any --out=data/videos/generated

Each video is halved, and encoded and decoded. Half of them get noise up to a random time and are denoised by the
model, so that shapes bend and edges move as in samples.
"""

import argparse
import json
import pathlib

import jax
import numpy as np

from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.data.media.resize import AREA, resized
from sora_jax.data.media.write import write_clip
from sora_jax.diffusion.flow import shift_of
from sora_jax.evaluate.benchmark import read_video
from sora_jax.generate.generator import load_generator
from sora_jax.generate.sampling.clips import Noise
from sora_jax.generate.sampling.pipeline import sample_latents
from sora_jax.generate.tasks import coder_of, edit
from sora_jax.worlds.shapes import SHIPPED_MODEL

TIMES = (0.2, 0.5)  # noise times from which the model denoises
FPS = 16.0


def generated(generator, video: np.ndarray, prompt: str, number: int) -> np.ndarray:
    """The video [F, H, W, 3] uint8 at half its size, as the model makes it."""
    coder, draw = coder_of(generator), np.random.default_rng((0, number))
    low = resized(video, (video.shape[1] // 2, video.shape[2] // 2), AREA)
    if draw.random() < 0.5:
        return coder.decode(coder.encode(low))
    sample = generator.settings.sample
    frames = (len(low) - 1) // coder.stride + 1
    patches = frames * 16  # of 64x64
    shift = generator.settings.flow.shift_scale * float(shift_of(patches, frames))
    time = draw.uniform(*TIMES)
    task = edit(coder, low, time / (shift - (shift - 1) * time))  # the time before the shift
    latents = sample_latents(generator, [prompt], sample, Noise(0, number), conditioning=task.conditioning)
    return coder.decode(latents[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--count", type=int, default=10**9)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in (arguments.videos / "captions.jsonl").read_text().splitlines()]
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        generator = load_generator(SHIPPED_MODEL)
        for number, line in enumerate(lines[: arguments.count]):
            path = arguments.out / line["video"]
            if not path.exists():
                made = generated(generator, read_video(arguments.videos / line["video"]), line["caption"], number)
                write_clip(path, made, fps=FPS)
    table = "".join(json.dumps(line) + "\n" for line in lines[: arguments.count])
    (arguments.out / "captions.jsonl").write_text(table)


if __name__ == "__main__":
    main()
