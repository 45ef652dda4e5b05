"""Sample videos during training, from the averaged weights in memory, and the page that shows them."""

import dataclasses
import io
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import PIL.Image
import rich.console

from sora_jax.checkpoint.model_folder import load_model
from sora_jax.checkpoint.restore import STUDENT
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import num_shards
from sora_jax.core.patches import patch_grid
from sora_jax.data.media.video import probe, read_clip
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.generate.generator import Generator, latent_shape, with_dtype
from sora_jax.generate.output.writer import write_webp
from sora_jax.generate.sample import write_videos
from sora_jax.generate.sampling.pipeline import check_prompts
from sora_jax.interop.encoders import check_encoder, load_encoder
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.video_model import join
from sora_jax.report.figures import draw_loss_curves
from sora_jax.report.page import Clip, Picture, Section, Sheet, write_page
from sora_jax.train.monitoring.metrics_log import MetricsLog
from sora_jax.train.monitoring.trackers import Gif

FOLDER, PAGE = "samples", "index.html"
MAX_SIDE = 320  # pixels, of the previews in the page and in trackers


def check_samples(settings: Settings, mesh: jax.sharding.Mesh):
    """Raise InputError if this model can't make the samples of `train.sample_every`."""
    if settings.objective == "autoencoder":
        raise InputError(f"config.train.sample_every: an {settings.objective} makes no videos; set it to 0")
    if settings.flow.time_min > 0 or settings.flow.time_max < 1:
        raise InputError(
            "config.train.sample_every: an expert of a part of the times makes no video alone; set it to 0"
        )
    if settings.transformer.condition_channels or settings.transformer.image_width:
        raise InputError(
            "config.train.sample_every: this model needs images, and there are only prompts; set it to 0"
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


class SampleVideos:
    """Makes the videos of `train.sample_prompts`; every process takes part, the first one writes."""

    def __init__(self, settings: Settings, workdir: pathlib.Path, console: rich.console.Console):
        self.settings, self.workdir, self.console = settings, workdir, console
        self._autoencoder: tuple[AutoencoderSettings, dict] | None = None

    def make(self, step: int, ema: dict, frozen_params: dict, metrics: MetricsLog, advance: Callable[[], None]):
        """Write `samples/STEP/N.mp4` and `.webp`, pass them to the trackers, and rewrite the page."""
        if self._autoencoder is None:
            self._autoencoder = load_model(self.workdir / "autoencoder", Autoencoder, AutoencoderSettings)
        train, sample = self.settings.train, self.settings.sample
        # The step cache needs measurements of a checkpoint; these weights have none.
        sample = dataclasses.replace(sample, step_cache_threshold=0.0)
        tokenizer = Tokenizer(self.workdir / "tokenizer.model")
        # The autoencoder that encodes in the step, a teacher and a critic are no part of the VideoModel.
        ema = ema.get(STUDENT, ema)
        frozen_params = {
            name: params for name, params in frozen_params.items() if name not in ("autoencoder", "teacher")
        }
        if self.settings.data.embeddings:  # loaded for this call only: training has no memory for it
            frozen_params["text_encoder"] = load_encoder(self.settings.text)
        settings, params = self._autoencoder
        generator = Generator(self.settings, join(ema, frozen_params), settings, params, tokenizer, step)
        generator = with_dtype(generator, sample.dtype)
        folder = self.workdir / FOLDER / str(step)
        paths = [folder / f"{n:03}.mp4" for n in range(len(train.sample_prompts))]
        for n in write_videos(
            generator, list(train.sample_prompts), paths, sample, seed=train.sample_seed, advance=advance
        ):
            if jax.process_index() == 0:
                frames = preview(paths[n], sample.fps, sample.frames)
                write_webp(paths[n].with_suffix(".webp"), frames, sample.fps)
                height, width = frames.shape[1:3]
                gif = Gif(gif_of(frames, sample.fps), height, width, train.sample_prompts[n])
                metrics.video(step, f"samples/{n:03}", gif)
        if jax.process_index() == 0:
            write_sheet(self.workdir, self.settings)
            self.console.print(f"samples of step {step}: {self.workdir / PAGE}", markup=False, highlight=False)


def preview(path: pathlib.Path, fps: float, frames: int) -> np.ndarray:
    """The frames of a video, scaled down to MAX_SIDE, [F, H, W, 3] uint8."""
    video = probe(path)
    factor = min(1.0, MAX_SIDE / max(video.height, video.width))
    size = (max(1, round(video.height * factor)), max(1, round(video.width * factor)))
    return read_clip(video, size, fps=fps, frames=frames)


def gif_of(frames: np.ndarray, fps: float) -> bytes:
    """An animated GIF."""
    first, *rest = (PIL.Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    # GIF's unit is a hundredth of a second.
    first.save(file, format="GIF", save_all=True, append_images=rest, duration=round(100 / fps) * 10, loop=0)
    return file.getvalue()


def write_sheet(workdir: pathlib.Path, settings: Settings):
    """Write the page of a run: a row of samples for each step, the newest first, and the loss."""
    prompts = settings.train.sample_prompts
    rows = []
    for folder in sorted((workdir / FOLDER).glob("[0-9]*"), key=lambda folder: -int(folder.name)):
        previews = [folder / f"{n:03}.webp" for n in range(len(prompts))]
        clips = [
            Clip(path.with_suffix(".mp4"), path, prompt) for path, prompt in zip(previews, prompts, strict=True)
        ]
        # Samples of an interrupted step may be missing.
        rows.append((f"{int(folder.name):,}", [clip if clip.preview.exists() else None for clip in clips]))
    sections = [
        Section("Samples", "By step and prompt, with the same noise at every step.", [Sheet(prompts, rows)])
    ]
    metrics = workdir / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        draw_loss_curves(workdir / "loss.png", {settings.objective: metrics})
        curve = Picture(workdir / "loss.png", "Loss over the updates.")
        sections.append(Section("Loss", "All logged values, smoothed.", [curve]))
    write_page(
        workdir / PAGE,
        workdir.resolve().name,
        f"{settings.sample.size}, {settings.sample.frames} frames, guidance {settings.sample.guidance:g}, "
        f"{settings.sample.steps} steps of {settings.sample.solver}, from the averaged weights.",
        sections,
    )
