"""A refiner of the shapes world beside bicubic, Lanczos, SDEdit and the autoencoder's limit, on held-out scenes.

    python tests/benchmarks/shapes/refine.py runs/refiner --out=runs/refined --scenes=200

Truth is rendered at 128x128, the input is its mean over areas. Prints a table, and writes measures.json,
prompts.txt, the videos of each method in a folder of its name, sheet.png with crops and side_by_side.mp4.
"""

import argparse
import dataclasses
import json
import pathlib

import jax
import numpy as np
from PIL import Image

from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.data.frame_rate import blended
from sora_jax.data.media.resize import AREA, BICUBIC, LANCZOS, resized
from sora_jax.data.media.write import write_clip
from sora_jax.evaluate.metrics.image_quality import psnr, ssim
from sora_jax.evaluate.metrics.motion import measure_motion
from sora_jax.evaluate.metrics.reconstruction import MAX_PSNR
from sora_jax.generate.generator import load_generator
from sora_jax.generate.refine.refiner import Refiner, load_refiner
from sora_jax.generate.refine.stream import refined
from sora_jax.models.autoencoder.streaming import decode_stream, encode_stream
from sora_jax.worlds.shapes import SHIPPED_MODEL
from sora_jax.worlds.shapes.captions import caption
from sora_jax.worlds.shapes.detector import compare, read_scene
from sora_jax.worlds.shapes.renderer import render, sample_scene

SIDE, FRAMES, FPS = 128, 17, 16.0
SDEDIT = 0.3  # noise time from which the generator edits
SDEDIT_STEPS = 4
TILE = 64  # pixels
EDGE_LEVELS = 10.0  # of 255: change between neighbours that is an edge
EDGE_REACH = 2  # pixels around it
METHODS = ("bicubic", "Lanczos", "SDEdit 0.3", "refiner", "refiner alone", "ceiling")


def sdedit() -> Refiner:
    """The generator as a refiner: it is given the enlarged input with noise, and sees tiles of its own size."""
    generator = load_generator(SHIPPED_MODEL)
    settings = generator.settings
    sample = dataclasses.replace(settings.sample, steps=SDEDIT_STEPS, solver="euler", shift=1.0)
    data = dataclasses.replace(settings.data, crop_size=f"{TILE}x{TILE}")
    refine = dataclasses.replace(settings.refine, autoencoder_tile=TILE)
    settings = dataclasses.replace(settings, sample=sample, data=data, refine=refine)
    generator = dataclasses.replace(generator, settings=settings)
    return Refiner(generator, 0.0, SDEDIT)


def run(refiner: Refiner, low: np.ndarray, prompt: str, **options) -> np.ndarray:
    return np.concatenate(list(refined(refiner, low, [(SIDE, SIDE)], prompt=prompt, **options)))


def edges(video: np.ndarray, truth: np.ndarray) -> float:
    """Gradient energy near the truth's edges, over the truth's."""

    def energy(x):
        x = x.astype(np.float32)
        down, across = np.diff(x, axis=1)[:, :, :-1], np.diff(x, axis=2)[:, :-1]
        return (down**2 + across**2).mean(axis=-1)

    near = energy(truth) > EDGE_LEVELS**2
    for axis in (1, 2):
        near = np.any([np.roll(near, n, axis) for n in range(-EDGE_REACH, EDGE_REACH + 1)], axis=0)
    return float(energy(video)[near].sum() / energy(truth)[near].sum())


def still_change(video: np.ndarray, truth: np.ndarray) -> float:
    """Mean difference of successive frames where the truth stands, in levels of 255."""
    stands = (np.diff(truth.astype(int), axis=0) == 0).all(axis=-1)
    return float(np.abs(np.diff(video.astype(int), axis=0)).mean(axis=-1)[stands].mean())


def tile_step(video: np.ndarray, truth: np.ndarray) -> float:
    """Mean step of the error across the borders of tiles over that elsewhere; 1: no seams."""
    error = video.astype(np.float32) - truth
    step = np.abs(np.diff(error, axis=2)).mean(axis=(0, 1, 3))
    border = np.isin(np.arange(1, SIDE), [32, 64, 96])  # tiles of 64 pixels begin every 32 of 128
    return float(step[border].mean() / step[~border].mean())


def measures(video, truth, low, scene) -> dict[str, float]:
    motion = measure_motion(video, 2)
    agree = compare(scene, read_scene(video, fps=FPS))
    return {
        "PSNR": float(np.minimum(psnr(video, truth), MAX_PSNR).mean()),
        "SSIM": float(ssim(video, truth).mean()),
        "edges": edges(video, truth),
        "made small, PSNR": float(np.minimum(psnr(resized(video, low.shape[1:3], AREA), low), MAX_PSNR).mean()),
        "still": still_change(video, truth),
        "flicker": motion["flicker"],
        "tiles": tile_step(video, truth),
        "prompt": float(all(agree.values())),
    }


def moving_psnr(video: np.ndarray, truth: np.ndarray) -> float:
    """PSNR where the truth moves, of the frames between."""
    moves = (np.abs(np.diff(truth.astype(int), axis=0)).max(axis=-1) > 0)[:-1] | (
        np.abs(np.diff(truth.astype(int), axis=0)).max(axis=-1) > 0
    )[1:]
    error = np.square(video[1:-1].astype(float) - truth[1:-1]).mean(axis=-1)
    between = np.arange(1, len(truth) - 1) % 2 == 1
    chosen = error[between][moves[between]]
    return float(10 * np.log10(255**2 / chosen.mean())) if len(chosen) else float("nan")


def rate_measures(refiner, scenes) -> dict[str, float]:
    """PSNR of frames between, on moving things, at 128x128 from every second frame of the input."""
    found: dict[str, list[float]] = {"blended": [], "refiner": []}
    for number, scene in scenes:
        truth = render(scene, frames=FRAMES, size=(SIDE, SIDE), fps=FPS)
        low = resized(truth, (SIDE // 2, SIDE // 2), AREA)[::2]
        words = caption(scene, "plain", moving=True, bounced=[False] * len(scene.things))
        plain = np.stack([frame for frame, _ in blended(resized(low, (SIDE, SIDE), BICUBIC), 2)])[:FRAMES]
        made = run(refiner, low, words, factor=2, seed=number)[:FRAMES]
        for name, video in (("blended", plain), ("refiner", made)):
            found[name].append(moving_psnr(video, truth))
    return {name: float(np.nanmean(values)) for name, values in found.items()}


def reconstructed(generator, video: np.ndarray) -> np.ndarray:
    """The video through the autoencoder, in the tiles that the refiner has."""
    params, settings = generator.autoencoder_params, generator.autoencoder
    tile = TILE // settings.spatial_stride
    latents = np.concatenate(list(encode_stream(params, settings, video, tile=tile)))
    return np.concatenate(list(decode_stream(params, settings, latents, tile=tile)))


def make_all(refiner, editor, truth, low, words, number) -> dict[str, np.ndarray]:
    coder = editor.generator
    size = (SIDE, SIDE)
    return {
        "bicubic": resized(low, size, BICUBIC),
        "Lanczos": resized(low, size, LANCZOS),
        "SDEdit 0.3": run(editor, low, words, seed=number),
        "refiner": run(refiner, low, words, seed=number),
        "refiner alone": run(refiner, low, words, seed=number, back_projection=0.0),
        "ceiling": reconstructed(coder, truth),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--scenes", type=int, default=200)
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    scenes = [(n, sample_scene(7, n, held_out=True)) for n in range(arguments.scenes)]
    found: dict[str, list[dict]] = {name: [] for name in METHODS}
    shown, prompts = [], []
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        refiner, editor = load_refiner(arguments.workdir), sdedit()
        for number, scene in scenes:
            truth = render(scene, frames=FRAMES, size=(SIDE, SIDE), fps=FPS)
            low = resized(truth, (SIDE // 2, SIDE // 2), AREA)
            prompts.append(caption(scene, "plain", moving=True, bounced=[False] * len(scene.things)))
            made = make_all(refiner, editor, truth, low, prompts[-1], number)
            for name, video in made.items():
                found[name].append(measures(video, truth, low, scene))
                write_clip(out / name.replace(" ", "_") / f"{number:03}.mp4", video, fps=FPS)
            if number < 6:
                shown.append([resized(low, (SIDE, SIDE), Image.Resampling.NEAREST), *made.values(), truth])
        rate = rate_measures(refiner, scenes[: max(1, arguments.scenes // 4)])
    means = {
        name: {key: float(np.nanmean([one[key] for one in rows])) for key in rows[0]}
        for name, rows in found.items()
    }
    header = list(means["refiner"])
    print("| method | " + " | ".join(header) + " |\n|" + "---|" * (len(header) + 1))
    for name, values in means.items():
        print(f"| {name} | " + " | ".join(f"{values[key]:.3f}" for key in header) + " |")
    print(f"frames between, PSNR on moving things: {rate}")
    (out / "measures.json").write_text(json.dumps({"means": means, "rate": rate, "scenes": len(scenes)}, indent=1))
    (out / "prompts.txt").write_text("".join(f"{line}\n" for line in prompts))
    rows = [np.concatenate([video[8] for video in row], axis=1) for row in shown]
    Image.fromarray(np.concatenate(rows)).save(out / "sheet.png")
    write_clip(out / "side_by_side.mp4", np.concatenate(shown[0], axis=2), fps=FPS)


if __name__ == "__main__":
    main()
