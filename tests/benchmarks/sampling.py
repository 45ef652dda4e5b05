"""What each option of sampling saves, and what it costs in quality.

Run: PYTHONPATH=. python tests/benchmarks/sampling.py --checkpoint=runs/shapes --samples=20

Each option makes the same prompts with the same noise. Times are of the solver alone, the median of those after
one that compiles. PSNR and SSIM are against the checkpoint's own settings with no option; adherence is the share
of samples that show all of their prompt, for checkpoints of the shapes world.
"""

import argparse
import dataclasses
import pathlib
import statistics
import time

import jax
import numpy as np

from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.evaluate.metrics.image_quality import psnr, ssim
from sora_jax.generate.generator import load_generator, video_size
from sora_jax.generate.sampling.clips import Noise
from sora_jax.generate.sampling.pipeline import sample_latents
from sora_jax.generate.sampling.schedule import denoising_schedule
from sora_jax.generate.sampling.step_cache import VelocityMeter
from sora_jax.models.autoencoder.streaming import decode_stream
from sora_jax.worlds.shapes.detector import read_scene
from sora_jax.worlds.shapes.prompt_suite import agreement, make_prompts
from sora_jax.worlds.shapes.prompts import read_prompt

OPTIONS = {
    "plain": {},
    "no guidance": {"guidance": 1.0},
    "guidance at 0.3 to 0.9": {"guidance_min": 0.3, "guidance_max": 0.9},
    "guidance at 0.3 to 1": {"guidance_min": 0.3},
    **{f"step cache {share:g}": {"step_cache_threshold": share} for share in (0.05, 0.1, 0.15, 0.2, 0.3)},
    "half of the steps": {"steps": 0.5},  # what the step cache has to beat
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, step cache 0.1, guidance at 0.3 to 1": {
        "dtype": "bfloat16",
        "step_cache_threshold": 0.1,
        "guidance_min": 0.3,
    },
}


def measure(generator, sample, prompts, seed):
    """(seconds of each, videos [F, H, W, 3] uint8)."""
    sample_latents(generator, prompts[:1], sample, Noise(seed))  # compiles
    seconds, videos = [], []
    for n, prompt in enumerate(prompts):
        start = time.perf_counter()
        latents = sample_latents(generator, [prompt], sample, Noise(seed, n))[0]
        seconds.append(time.perf_counter() - start)
        frames = decode_stream(generator.autoencoder_params, generator.autoencoder, latents)
        videos.append(np.concatenate(list(frames)))
    return seconds, videos


def obeyed(prompts, videos, fps) -> str:
    """Share of the videos that show all of their prompt; "" where prompts are not of the shapes world."""
    try:
        for prompt in prompts:
            read_prompt(prompt)
    except InputError:
        return ""
    found = [all(agreement(p, read_scene(v, fps=fps)).values()) for p, v in zip(prompts, videos, strict=True)]
    return f"{100 * np.mean(found):.0f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--steps", type=int, help="default: the checkpoint's own")
    parser.add_argument("--solver", help="default: the checkpoint's own; an ancestral one skips nothing")
    parser.add_argument(
        "--prompts", type=pathlib.Path, help="a file; default: held-out scenes of the shapes world"
    )
    parser.add_argument("--options", help="names with semicolons; default: all")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    generators = {"": load_generator(asked.checkpoint)}
    own = generators[""].settings.sample
    own = dataclasses.replace(
        own, step_cache_threshold=0.0, steps=asked.steps or own.steps, solver=asked.solver or own.solver
    )
    if asked.prompts:
        prompts = asked.prompts.read_text().splitlines()[: asked.samples]
    else:
        prompts = make_prompts(asked.samples, size=video_size(own), frames=own.frames, fps=own.fps)
    wanted = asked.options.split(";") if asked.options else list(OPTIONS)
    step, solver = generators[""].step, f"{own.steps} steps of {own.solver}"
    print(f"{asked.checkpoint}, step {step}, {len(prompts)} samples of {solver}\n")
    print(
        "| option | model runs | s a sample | speed-up | PSNR | SSIM | adherence |\n|---|---|---|---|---|---|---|"
    )
    first = None
    for name in dict.fromkeys(["plain", *wanted]):
        changes = dict(OPTIONS[name])
        if "steps" in changes:
            changes["steps"] = round(own.steps * changes["steps"])
        sample = dataclasses.replace(own, **changes)
        if sample.dtype not in generators:
            generators[sample.dtype] = load_generator(asked.checkpoint, dtype=sample.dtype)
        generator = generators[sample.dtype]
        if sample.step_cache_threshold:
            meter = VelocityMeter()  # on a prompt that is none of the measured ones' noise
            plain = dataclasses.replace(sample, step_cache_threshold=0.0)
            sample_latents(generator, prompts[:1], plain, Noise(asked.seed + 1), on_step=meter)
            generator = dataclasses.replace(generator, velocity_change=meter.result(generator.step))
        runs = sum(not step.cached for step in denoising_schedule(generator, sample).steps)
        seconds, videos = measure(generator, sample, prompts, asked.seed)
        median = statistics.median(seconds)
        first = first or (median, videos)
        near = [np.mean([np.mean(f(a, b)) for a, b in zip(videos, first[1], strict=True)]) for f in (psnr, ssim)]
        print(
            f"| {name} | {runs} of {sample.steps} | {median:.2f} | {first[0] / median:.2f} | {near[0]:.1f} | "
            f"{near[1]:.3f} | {obeyed(prompts, videos, sample.fps)} |",
            flush=True,
        )


if __name__ == "__main__":
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        main()
