"""The demo: from video files to sampled videos on this machine, in minutes.

It trains the models of the package a little further, and shows samples before and after. Every step calls the
function of a command on real files; a second run reuses the finished steps.
"""

import dataclasses
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable

import jax
import numpy as np
import rich.console

from sora_jax.checkpoint.model_folder import load_model, load_settings
from sora_jax.checkpoint.workdir import RELEASED, find_checkpoint
from sora_jax.config.schema import (
    AutoencoderSettings,
    DataSettings,
    LossSettings,
    MeshSettings,
    OptimizerSettings,
    Settings,
    TrainSettings,
)
from sora_jax.core.mesh import make_mesh
from sora_jax.core.patches import patch_grid
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import atomic_write
from sora_jax.data.media.video import probe, read_clip
from sora_jax.data.prepare.prepare import Options, prepare
from sora_jax.data.records.records import Records
from sora_jax.evaluate.metrics.reconstruction import measure_reconstruction
from sora_jax.generate.generator import latent_shape
from sora_jax.generate.output.writer import write_webp
from sora_jax.generate.request import Request
from sora_jax.generate.sample import sample
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import count_params
from sora_jax.report.figures import draw_loss_curves, draw_reconstruction
from sora_jax.report.page import Clip, Picture, write_demo_page
from sora_jax.train.loop import train
from sora_jax.worlds.shapes import SHIPPED_AUTOENCODER, SHIPPED_MODEL
from sora_jax.worlds.shapes.renderer import World, write_world

CLIPS = 640
SIZE, FRAMES, FPS = "64x64", 17, 16.0
PROMPTS = (
    "a large red circle moves right on a black background",
    "a large yellow square moves down on a blue background",
    "a large green triangle moves left on a white background",
    "a large purple circle stays still on a grey background",
)

SHIPPED_SETTINGS = load_settings(SHIPPED_MODEL / RELEASED, Settings)
SETTINGS = Settings(
    data=DataSettings(fps=FPS, sizes=(SIZE,), frames=(FRAMES,), crop_size=SIZE, threads=2),
    autoencoder=SHIPPED_SETTINGS.autoencoder,
    text=SHIPPED_SETTINGS.text,
    transformer=SHIPPED_SETTINGS.transformer,
    flow=SHIPPED_SETTINGS.flow,
    sample=dataclasses.replace(SHIPPED_SETTINGS.sample, size=SIZE, frames=FRAMES, fps=FPS),
)

PATCHES = math.prod(patch_grid(latent_shape(SETTINGS, SETTINGS.sample), SETTINGS.transformer.patch))


def autoencoder_settings(path: pathlib.Path, steps: int) -> Settings:
    """Settings to train the shipped autoencoder further on the pixels in `path`."""
    return dataclasses.replace(
        SETTINGS,
        objective="autoencoder",
        # Whole videos: after training on short ones, colours drift in later frames.
        data=dataclasses.replace(SETTINGS.data, path=str(path), batch=rows(4), crop_frames=FRAMES),
        loss=LossSettings(mse=4.0),
        optimizer=OptimizerSettings(
            name="muon",
            learning_rate=1e-4,
            warmup_steps=10,
            schedule="cosine",
            final_fraction=0.01,
            ema_decay=0.98,
            weight_decay=0.0,
        ),
        train=TrainSettings(init_from=str(SHIPPED_AUTOENCODER), steps=steps, save_every=100, keep=1),
    )


def transformer_settings(path: pathlib.Path, steps: int) -> Settings:
    """Settings to train the shipped transformer further on the latents in `path`."""
    return dataclasses.replace(
        SETTINGS,
        data=dataclasses.replace(
            SETTINGS.data,
            path=str(path),
            batch=rows(16),
            sequence_length=PATCHES,
            text_length=64,
            clips_per_sequence=1,
        ),
        optimizer=OptimizerSettings(
            name="muon", learning_rate=3e-4, warmup_steps=20, schedule="cosine", ema_decay=0.98, weight_decay=0.0
        ),
        train=TrainSettings(init_from=str(SHIPPED_MODEL), steps=steps, save_every=100, keep=1),
    )


def rows(least: int) -> int:
    """The smallest batch of at least `least` that the devices divide."""
    return -(-least // jax.device_count()) * jax.device_count()


class Stopwatch:
    """Seconds of each step, kept in a file, so that a second run does not replace them."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.seconds = json.loads(path.read_text()) if path.exists() else {}

    def time(self, name: str, work: Callable):
        """The result of `work`; its time is kept if it is the longest so far."""
        start = time.perf_counter()
        result = work()
        self.seconds[name] = max(self.seconds.get(name, 0.0), time.perf_counter() - start)
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.seconds))
        return result


def demo(
    out: pathlib.Path,
    *,
    console: rich.console.Console,
    autoencoder_steps: int = 60,
    transformer_steps: int = 200,
) -> pathlib.Path:
    """Make captioned clips, train both models on them, sample, and write a page that shows all of it.

    Args:
      out: folder for everything.
    Returns: the page.
    Raises: InputError if `out` holds something else, or the disk is full.
    """
    watch = Stopwatch(out / "seconds.json")
    world, pixels, latents = out / "world", out / "pixels", out / "latents"
    first = autoencoder_settings(pixels, autoencoder_steps)
    second = transformer_settings(latents, transformer_steps)

    def part(number, name, work):
        console.rule(f"{number}/7 {name}", align="left")
        return watch.time(name, work)

    part(1, "make videos", lambda: make_world(world, console))
    part(2, "prepare pixels", lambda: prepare(first, world, pixels, console=console))
    part(3, "train the autoencoder further", lambda: train(first, out / "autoencoder", console=console))
    # The transformer was trained with the shipped autoencoder and tokenizer.
    shipped = Options(autoencoder=SHIPPED_AUTOENCODER, tokenizer=SHIPPED_MODEL / "tokenizer.model")
    part(4, "prepare latents", lambda: prepare(second, world, latents, shipped, console=console))
    before = part(5, "sample videos before", lambda: make_samples(SHIPPED_MODEL, out / "before", console))
    state = part(6, "train the transformer further", lambda: train(second, out / "transformer", console=console))
    after = part(7, "sample videos after", lambda: make_samples(out / "transformer", out / "after", console))
    pictures, quality = draw_pictures(out, pixels)
    facts: dict[str, str | float] = {
        "machine": f"{os.cpu_count()} {platform.machine()} cores, {jax.devices()[0].device_kind}",
        "videos made": CLIPS,
        "size of a video": f"{SIZE}, {FRAMES} frames at {FPS:g} a second",
        "autoencoder, PSNR on videos held out": f"{quality['psnr']:.1f} dB",
        "autoencoder, SSIM on videos held out": f"{quality['ssim']:.3f}",
        "autoencoder, updates": autoencoder_steps,
        "transformer and text encoder, parameters": count_params(state.params),
        "transformer, updates before": find_checkpoint(SHIPPED_MODEL)[1],
        "transformer, updates here": transformer_steps,
    }
    curves = out / "loss.png"
    runs = {name: out / name / "metrics.jsonl" for name in ("autoencoder", "transformer")}
    draw_loss_curves(curves, runs)
    page = out / "index.html"
    write_demo_page(
        page,
        before=before,
        after=after,
        reconstructions=pictures,
        curves=Picture(curves, "Loss of the autoencoder and of the transformer over their updates."),
        seconds=watch.seconds,
        facts=facts,
    )
    console.print(f"done in {sum(watch.seconds.values()) / 60:.1f} minutes: open {page}", highlight=False)
    return page


def make_world(folder: pathlib.Path, console: rich.console.Console):
    """Write captioned videos of the shapes world."""
    with progress_bar(console) as bar:
        task = bar.add_task("videos", total=CLIPS, numbers="")
        write_world(
            folder,
            CLIPS,
            World(sizes=(SIZE,), lengths=(FRAMES,), fps=FPS),
            progress=lambda done: bar.update(task, completed=done),
        )


def make_samples(checkpoint: pathlib.Path, out: pathlib.Path, console: rich.console.Console) -> list[Clip]:
    """A video for each prompt, as mp4 and animated WebP."""
    made = sample(checkpoint, Request(tuple(PROMPTS)), out, mesh=MeshSettings(), console=console)
    paths = [one.path for one in made if one.path]
    clips = []
    for path, prompt in zip(paths, PROMPTS, strict=True):
        video = probe(path)
        frames = read_clip(video, (video.height, video.width), fps=FPS, frames=FRAMES)
        preview = path.with_suffix(".webp")
        write_webp(preview, np.repeat(np.repeat(frames, 3, axis=1), 3, axis=2), FPS, metadata={"prompt": prompt})
        clips.append(Clip(path, preview, prompt))
    return clips


def draw_pictures(out: pathlib.Path, pixels: pathlib.Path) -> tuple[list[Picture], dict]:
    """(pictures of the reconstructions of three held-out videos, their mean PSNR and SSIM)."""
    records = Records(pixels, "pixels")
    pictures, measured = [], []
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        settings, params = load_model(out / "autoencoder" / "autoencoder", Autoencoder, AutoencoderSettings)
        for index, clip in enumerate(records.clips("validation")[:3]):
            video = records.read("validation", index)
            values, made = measure_reconstruction(params, settings, video)
            path = out / f"reconstruction-{index}.png"
            draw_reconstruction(path, video, made)
            pictures.append(Picture(path, f"{clip.captions[0]} ({values['psnr']:.1f} dB)"))
            measured.append(values)
    return pictures, {name: float(np.mean([values[name] for values in measured])) for name in ("psnr", "ssim")}
