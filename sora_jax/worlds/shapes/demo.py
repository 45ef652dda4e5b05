"""The demo: the shipped model learns new words from a handful of clips, within minutes on this machine.

Clips, samples before, training, samples after, and a page that shows them side by side. Training gets the time
that the other parts leave of the budget.
"""

import dataclasses
import math
import os
import pathlib
import platform
import time

import jax
import numpy as np
import rich.console

from sora_jax.checkpoint.model_folder import load_settings
from sora_jax.checkpoint.workdir import RELEASED, find_checkpoint
from sora_jax.config.schema import DataSettings, MeshSettings, OptimizerSettings, Settings, TrainSettings
from sora_jax.core.patches import patch_grid
from sora_jax.data.media.video import probe, read_clip
from sora_jax.data.prepare.prepare import Options, prepare
from sora_jax.data.records.records import Records
from sora_jax.generate.generator import latent_shape
from sora_jax.generate.output.writer import VideoWriter, write_webp
from sora_jax.generate.request import Request
from sora_jax.generate.sample import sample
from sora_jax.report.figures import draw_loss_curves
from sora_jax.report.page import Clip, Durations, Picture, Section, Sheet, Table, write_page
from sora_jax.train.loop import train
from sora_jax.worlds.shapes import SHIPPED_AUTOENCODER, SHIPPED_MODEL
from sora_jax.worlds.shapes.drawings import draw_all, write_drawings
from sora_jax.worlds.shapes.renderer import World, write_world

SIDE, FRAMES, FPS = 64, 17, 16.0
SIZE = f"{SIDE}x{SIDE}"
PROMPTS = 7  # at most, of the clips' captions
MOST_CLIPS = 200  # that samples are compared with
STEPS = 24  # of the solver
KNOWN = "a small red circle moves left on a blue background"  # to show whether training made it forget
# So that it does not, a quarter of the batches is of the world that it knows (arXiv 2208.12242, section 3.3).
REHEARSED, SHARES = 32, "{new}:3,{known}:1"
# Beside the time that the samples before took, which is mostly compilation: other programs may slow those after.
SLOWER, PAGE_SECONDS = 1.3, 15.0
LEAST_SECONDS = 20.0  # of training, if the other parts have used up the budget

SHIPPED = load_settings(SHIPPED_MODEL / RELEASED, Settings)
PATCHES = math.prod(patch_grid(latent_shape(SHIPPED, SHIPPED.sample), SHIPPED.transformer.patch))


def demo_settings(out: pathlib.Path, seconds: float) -> Settings:
    """Settings to train the shipped transformer on the clips in `out`, for so long."""
    devices = jax.device_count()
    return dataclasses.replace(
        SHIPPED,
        # A loop over the layers compiles in a third of the time of unrolled ones.
        transformer=dataclasses.replace(SHIPPED.transformer, unroll=1),
        data=DataSettings(
            path=SHARES.format(new=out / "latents", known=out / "known/latents"),
            fps=FPS,
            sizes=(SIZE,),
            frames=(FRAMES,),
            crop_size=SIZE,
            batch=-(-8 // devices) * devices,
            sequence_length=PATCHES,
            text_length=64,
            clips_per_sequence=1,
            validation=0.0,
            threads=2,
        ),
        # AdamW: an update of muon takes twice as long on a CPU.
        optimizer=OptimizerSettings(learning_rate=2e-3, warmup_steps=10, ema_decay=0.96, weight_decay=0.0),
        train=TrainSettings(
            init_from=str(SHIPPED_MODEL),
            steps=1_000_000,
            minutes=seconds / 60,
            save_every=1_000_000,
            log_every=5,
            keep=1,
        ),
        mesh=MeshSettings(),
    )


@dataclasses.dataclass(frozen=True)
class CaptionedVideo:
    """A caption, a video that it describes, uint8 [F, H, W, 3], and whether the model is trained on the video."""

    caption: str
    video: np.ndarray
    trained_on: bool = True


def demo(
    out: pathlib.Path,
    *,
    console: rich.console.Console,
    minutes: float = 10.0,
    videos: pathlib.Path | None = None,
    since: float | None = None,
) -> pathlib.Path:
    """Fine-tune the shipped model on a handful of clips, and write a page with samples before and after.

    Args:
      out: folder for everything.
      minutes: budget of all parts together.
      videos: folder of captioned videos; None: drawings made by code.
      since: time of day from which the budget counts, in seconds since 1970; None: now.
    Returns: the page.
    Raises: InputError if no video has a caption, `out` holds something else, or the disk is full.
    """
    began = since or time.time()
    seconds: dict[str, float] = {"install and start": time.time() - began} if since else {}

    def part(name, work, *arguments):
        console.rule(name, align="left")
        start = time.monotonic()
        result = work(*arguments)
        seconds[name] = time.monotonic() - start
        return result

    clips = part("clips", make_clips, out, videos, console)
    asked = choose(clips)
    prompts = (*(clip.caption for clip in asked), KNOWN)
    before = part("samples before", make_samples, SHIPPED_MODEL, prompts, out / "before", console)
    left = began + 60 * minutes - time.time() - SLOWER * seconds["samples before"] - PAGE_SECONDS
    settings = demo_settings(out, max(LEAST_SECONDS, left))
    part("training", lambda: train(settings, out / "transformer", console=console))
    after = part("samples after", make_samples, out / "transformer", prompts, out / "after", console)
    measures = {name: measure(asked, clips, made) for name, made in (("before", before), ("after", after))}
    page = write_demo(out, asked, {"before": before, "after": after}, measures, seconds)
    shown = {name: measured["nearest"] for name, measured in measures.items()}
    console.print(
        f"done in {(time.time() - began) / 60:.1f} minutes: {shown['before']} of {len(asked)} captions were shown "
        f"before, {shown['after']} after; open {page}"
    )
    return page


def make_clips(
    out: pathlib.Path, videos: pathlib.Path | None, console: rich.console.Console
) -> list[CaptionedVideo]:
    """Prepare the clips to learn from.

    Returns: these clips; of the drawings also those that are kept from training.
    Raises: InputError if no video of enough frames has a caption.
    """
    drawings = None
    if videos is None:
        videos, drawings = out / "videos", draw_all(frames=FRAMES, size=SIDE)
        write_drawings(videos, (drawing for drawing in drawings if drawing.shown), fps=FPS)
    settings = demo_settings(out, 0.0)
    shipped = Options(
        autoencoder=SHIPPED_AUTOENCODER, tokenizer=SHIPPED_MODEL / "tokenizer.model", uncaptioned="skip"
    )
    prepare(settings, videos, out / "latents", shipped, console=console)
    write_world(out / "known/videos", REHEARSED, World(sizes=(SIZE,), lengths=(FRAMES,), fps=FPS))
    prepare(settings, out / "known/videos", out / "known/latents", shipped, console=console)
    if drawings:
        return [CaptionedVideo(drawing.caption, drawing.video, drawing.shown) for drawing in drawings]
    pixels = dataclasses.replace(settings, objective="autoencoder")
    prepare(pixels, videos, out / "pixels", Options(uncaptioned="skip"), console=console)
    records = Records(out / "pixels", "pixels")
    clips = records.clips("train")
    order = sorted(range(len(clips)), key=lambda index: clips[index].source)[:MOST_CLIPS]
    return [CaptionedVideo(clips[index].captions[0], records.read("train", index)) for index in order]


def choose(clips: list[CaptionedVideo]) -> list[CaptionedVideo]:
    """The first clip of each caption, those first that are kept from training; PROMPTS at most."""
    found: dict[str, CaptionedVideo] = {}
    for clip in sorted(clips, key=lambda clip: clip.trained_on):
        found.setdefault(clip.caption, clip)
    return list(found.values())[:PROMPTS]


def make_samples(
    checkpoint: pathlib.Path, prompts: tuple[str, ...], out: pathlib.Path, console: rich.console.Console
) -> list[np.ndarray]:
    """A video for each prompt, from the same noise for every checkpoint."""
    request = Request(prompts, changes={"steps": STEPS, "size": SIZE, "frames": FRAMES, "fps": FPS})
    made = sample(checkpoint, request, out, mesh=MeshSettings(), console=console)
    return [read_clip(probe(one.path), (SIDE, SIDE), fps=FPS, frames=FRAMES) for one in made if one.path]


def measure(asked: list[CaptionedVideo], clips: list[CaptionedVideo], samples: list[np.ndarray]) -> dict:
    """How near the samples are to the clips of their captions, by the squared error of the pixels.

    Returns: "nearest", the number of samples to which no other clip is nearer; "psnr", the mean in dB.
    """
    nearest, psnr = 0, []
    for clip, sampled in zip(asked, samples, strict=False):
        errors = [float(np.square(other.video.astype(np.float32) - sampled).mean()) for other in clips]
        nearest += clips[int(np.argmin(errors))].caption == clip.caption
        own = min(error for other, error in zip(clips, errors, strict=True) if other.caption == clip.caption)
        psnr.append(10 * math.log10(255**2 / max(own, 1e-6)))
    return {"nearest": nearest, "psnr": float(np.mean(psnr))}


def write_demo(out, asked, samples, measures, seconds) -> pathlib.Path:
    """Write the page: each caption with its clip and the samples before and after."""
    rows: list[tuple[str, list[Clip | None]]] = []
    for number, caption in enumerate([*(clip.caption for clip in asked), KNOWN]):
        real = {"clips": asked[number].video} if number < len(asked) else {}
        made = {name: videos[number] for name, videos in samples.items()}
        shown = {name: write_preview(out, name, number, video, caption) for name, video in (real | made).items()}
        rows.append((caption, [shown.get("clips"), shown["before"], shown["after"]]))
    draw_loss_curves(out / "loss.png", {"transformer": out / "transformer/metrics.jsonl"})
    first, last = measures["before"], measures["after"]
    shipped, trained = (find_checkpoint(folder)[1] for folder in (SHIPPED_MODEL, out / "transformer"))
    table = [
        ["samples nearest to the clip of their caption", first["nearest"], last["nearest"]],
        ["PSNR to that clip, dB", f"{first['psnr']:.1f}", f"{last['psnr']:.1f}"],
        ["updates", f"{shipped:,}", f"{shipped:,} + {trained:,}"],
    ]
    unseen = "" if asked[0].trained_on else " It was shown the drawings on other backgrounds than these."
    about = (
        f"{first['nearest']} of {len(asked)} captions were shown before, {last['nearest']} after.{unseen} Before "
        "and after start from the same noise. The last prompt is one that the model knew."
    )
    header = ("clip" if asked[0].trained_on else "drawing", "before", "after")
    sections = [
        Section("New words, new things", about, [Sheet(header, rows, corner="prompt")]),
        Section("Numbers", "Nearest: by the squared error to all clips.", [Table(("", "before", "after"), table)]),
        Section("Training", "Every logged loss, pale, and its running mean.", [Picture(out / "loss.png", "Loss")]),
        Section("Time", f"On {os.cpu_count()} {platform.machine()} cores.", [Durations(seconds)]),
    ]
    page = out / "index.html"
    summary = "The model of the package was trained for minutes, on this machine, on a handful of clips."
    write_page(page, "sora_jax: the demo", summary, sections)
    return page


def write_preview(out: pathlib.Path, folder: str, number: int, video: np.ndarray, caption: str) -> Clip:
    """The video as mp4, if it is not there, and as an animated picture three times as large."""
    path = out / folder / f"{number:03}.mp4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(path, FPS) as writer:
            writer.write(video)
    preview = path.with_suffix(".webp")
    write_webp(preview, np.repeat(np.repeat(video, 3, 1), 3, 2), FPS, metadata={"prompt": caption})
    return Clip(path, preview, caption)
