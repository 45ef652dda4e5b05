"""Sample videos while a run trains, from the averaged weights that are in memory, and the page that shows them."""

import dataclasses
import io
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import PIL.Image
import rich.console

from sora_jax.checkpoint.model_folder import load_model
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import num_shards
from sora_jax.core.patches import patch_grid
from sora_jax.data.prepare.decode import probe, read_clip
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.generate.pipeline import Generator, check_prompts, latent_shape, retyped
from sora_jax.generate.sample import write_videos
from sora_jax.generate.writer import write_webp
from sora_jax.interop.encoders import check_encoder, load_encoder
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.video_model import join
from sora_jax.report.figures import draw_loss_curves
from sora_jax.report.page import Clip, Picture, Section, Sheet, write_page
from sora_jax.train.monitoring.metrics import Metrics

FOLDER, PAGE = "samples", "index.html"
SIDE = 320  # pixels, the longer side of the pictures in the page and in TensorBoard, at most


def check_samples(settings: Settings, mesh: jax.sharding.Mesh):
    """Raise InputError if the samples that `train.sample_every` asks for can't be made."""
    if settings.objective != "flow":
        raise InputError(f"config.train.sample_every: an {settings.objective} makes no videos; set it to 0")
    if settings.flow.time_min > 0 or settings.flow.time_max < 1:
        raise InputError(
            "config.train.sample_every: an expert of some of the times makes no video alone; set it to 0"
        )
    if settings.transformer.condition_channels or settings.transformer.image_width:
        raise InputError(
            "config.train.sample_every: this model is given images, which no prompt holds; set it to 0"
        )
    check_prompts(list(settings.train.sample_prompts))
    if settings.data.embeddings:
        with jax.set_mesh(mesh):
            check_encoder(settings.text)
    grid = patch_grid(latent_shape(settings, settings.sample), settings.transformer.patch)
    N, degree = int(np.prod(grid)), num_shards("tokens", mesh.shape)
    if N % degree or settings.text.max_tokens % degree:
        raise InputError(
            f"config.sample.size: its {N} patches, and the {settings.text.max_tokens} tokens of a prompt, must be "
            f"a multiple of ring x ulysses = {degree} to be sampled while training"
        )


class Samples:
    """Makes the videos of `train.sample_prompts`; every process of the run makes them, the first one writes."""

    def __init__(self, settings: Settings, workdir: pathlib.Path, console: rich.console.Console):
        self.settings, self.workdir, self.console = settings, workdir, console
        self._autoencoder: tuple[AutoencoderSettings, dict] | None = None

    def make(self, step: int, ema: dict, frozen: dict, metrics: Metrics, advance: Callable[[], None]):
        """Write `samples/STEP/N.mp4` and `.webp`, show them in TensorBoard, and renew the page."""
        if self._autoencoder is None:
            self._autoencoder = load_model(self.workdir / "autoencoder", Autoencoder, AutoencoderSettings)
        train, sample = self.settings.train, self.settings.sample
        # How far the velocity moves is known of a checkpoint, not of weights that learn.
        sample = dataclasses.replace(sample, skip=0.0)
        tokenizer = Tokenizer(self.workdir / "tokenizer.model")
        # That of the step is no part of the model.
        frozen = {name: params for name, params in frozen.items() if name != "autoencoder"}
        if self.settings.data.embeddings:  # for as long as it is needed: training has no room for it
            frozen = frozen | {"text_encoder": load_encoder(self.settings.text)}
        generator = Generator(self.settings, join(ema, frozen), *self._autoencoder, tokenizer, step)
        generator = retyped(generator, sample.dtype)
        folder = self.workdir / FOLDER / str(step)
        paths = [folder / f"{n:03}.mp4" for n in range(len(train.sample_prompts))]
        for n in write_videos(
            generator, list(train.sample_prompts), paths, sample, seed=train.sample_seed, advance=advance
        ):
            if jax.process_index() == 0:
                frames = small(paths[n], sample.fps, sample.frames)
                write_webp(paths[n].with_suffix(".webp"), frames, sample.fps)
                prompt = train.sample_prompts[n]
                metrics.picture(step, f"samples/{n:03} {prompt}", gif_of(frames, sample.fps), frames.shape[1:3])
        if jax.process_index() == 0:
            write_sheet(self.workdir, self.settings)
            self.console.print(f"samples of step {step}: {self.workdir / PAGE}", highlight=False)


def small(path: pathlib.Path, fps: float, frames: int) -> np.ndarray:
    """The frames of a video, scaled down to what a page of many has room for, [F, H, W, 3] uint8."""
    video = probe(path)
    factor = min(1.0, SIDE / max(video.height, video.width))
    size = (max(1, round(video.height * factor)), max(1, round(video.width * factor)))
    return read_clip(video, size, fps=fps, frames=frames)


def gif_of(frames: np.ndarray, fps: float) -> bytes:
    """An animated GIF, which TensorBoard plays among its images; it knows no WebP."""
    first, *rest = (PIL.Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    # GIF counts in hundredths of a second.
    first.save(file, format="GIF", save_all=True, append_images=rest, duration=round(100 / fps) * 10, loop=0)
    return file.getvalue()


def write_sheet(workdir: pathlib.Path, settings: Settings):
    """The page of a run: its loss, and all samples that there are, a row for each step, the newest first."""
    prompts = settings.train.sample_prompts
    rows = []
    for folder in sorted((workdir / FOLDER).glob("[0-9]*"), key=lambda folder: -int(folder.name)):
        previews = [folder / f"{n:03}.webp" for n in range(len(prompts))]
        clips = [
            Clip(path.with_suffix(".mp4"), path, prompt) for path, prompt in zip(previews, prompts, strict=True)
        ]
        # Of a step whose samples were cut short, the others are shown.
        rows.append((f"{int(folder.name):,}", [clip if clip.preview.exists() else None for clip in clips]))
    sections = [
        Section("Samples", "By step and prompt, with the same noise at every step.", [Sheet(prompts, rows)])
    ]
    metrics = workdir / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        draw_loss_curves(workdir / "loss.png", {settings.objective: metrics})
        curve = Picture(workdir / "loss.png", "Loss over the updates.")
        sections.append(Section("Loss", "Every logged value, and their course.", [curve]))
    write_page(
        workdir / PAGE,
        workdir.resolve().name,
        f"{settings.sample.size}, {settings.sample.frames} frames, guidance {settings.sample.guidance:g}, "
        f"{settings.sample.steps} steps of {settings.sample.solver}, from the averaged weights.",
        sections,
    )
