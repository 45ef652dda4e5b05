"""Streams of the shapes model: first frame, frames a second, and how rough the borders of windows are.

    python tests/benchmarks/stream.py --seconds=10 --steps=16

The roughness of a border is the mean absolute difference of its two frames over that of the other pairs. Beside
the stream, which gives a window the latents before it, stand the windows of `sample --seconds`, which encode the
frames before it anew.
"""

import argparse
import dataclasses
import itertools
import time

import jax
import numpy as np

from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.generate.generator import load_generator
from sora_jax.generate.sampling.long_videos import context_frames, forward
from sora_jax.generate.sampling.sampler import VideoSampler
from sora_jax.generate.sampling.stream import VideoStream
from sora_jax.generate.tasks import coder_of
from sora_jax.worlds.shapes import SHIPPED_MODEL

PROMPTS = (
    "a large red circle moves right on a black background",
    "a small blue square moves up on a white background",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="Length of each video.")
    parser.add_argument("--steps", type=int, default=16, help="Steps of the solver.")
    options = parser.parse_args()
    with jax.set_mesh(make_mesh(MeshSettings())):
        generator = load_generator(SHIPPED_MODEL)
        settings = dataclasses.replace(generator.settings.sample, steps=options.steps)
        frames = round(options.seconds * settings.fps)
        take(VideoStream(generator, settings, PROMPTS[0]), frames // 2)  # compiles
        for prompt in PROMPTS:
            video, first, seconds = take(VideoStream(generator, settings, prompt), frames)
            encoded = np.concatenate(list(windows(generator, settings, prompt, frames)))
            rough = [border_roughness(made, generator, settings.frames) for made in (video, encoded)]
            print(
                f"{prompt}: first frame {first:.2f} s, {len(video) / seconds:.1f} frames a second; roughness of "
                f"borders {rough[0]:.2f}, encoded anew {rough[1]:.2f}"
            )


def take(stream, frames: int) -> tuple[np.ndarray, float, float]:
    """(the first frames of a stream, seconds to the first chunk, seconds to the last)."""
    began, made, first = time.monotonic(), [], 0.0
    with stream as video:
        for chunk in video:
            first = first or time.monotonic() - began
            made.append(chunk)
            if sum(map(len, made)) >= frames:
                break
        seconds = time.monotonic() - began
    return np.concatenate(made), first, seconds


def windows(generator, settings, prompt: str, frames: int):
    """The chunks of the same video by `long_videos.forward`."""
    sampler = VideoSampler(generator, settings, seed=0, negative_prompt=settings.negative_prompt)

    def sample(window, share, condition, unfinished):
        return sampler.latents([prompt], condition(), frames=settings.frames, window=window)[0]

    return forward(coder_of(generator), sample, settings.frames, frames)


def border_roughness(video: np.ndarray, generator, window: int) -> float:
    """Difference of frames across borders of windows, relative to that of other neighbours."""
    stride = generator.autoencoder.temporal_stride
    later = window - 1 - stride * (context_frames((window - 1) // stride + 1) - 1)
    borders = list(itertools.takewhile(lambda frame: frame < len(video), itertools.count(window, later)))
    change = np.abs(np.diff(video.astype(np.float32), axis=0)).mean((1, 2, 3))
    at = np.isin(np.arange(1, len(video)), borders)
    return float(change[at].mean() / change[~at].mean())


if __name__ == "__main__":
    main()
