"""The benchmark `reconstruction`: PSNR, SSIM, MS-SSIM and LPIPS of an autoencoder on held-out clips."""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from sora_jax.checkpoint.model_folder import load_model
from sora_jax.config.schema import AutoencoderSettings
from sora_jax.core.errors import InputError
from sora_jax.core.progress import progress_bar
from sora_jax.data.loader.mixture import Mixture
from sora_jax.evaluate.benchmark import Benchmark, Options, Sample, terminal_table
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.evaluate.metrics.reconstruction import measure_reconstruction
from sora_jax.interop.lpips import load_lpips
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.report.figures import draw_reconstruction
from sora_jax.report.page import Picture, Section, Table

MEASURES = {"psnr": "PSNR, dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "lpips": "LPIPS"}
PICTURES = 8  # at most, in a report


def _check(checkpoint: CheckpointUnderTest, options: Options):
    Mixture(
        options.data or checkpoint.settings.data.path, "pixels", where="--data" if options.data else "data.path"
    )
    if not (checkpoint.workdir / "autoencoder").is_dir():
        raise InputError(f"{checkpoint.workdir}: its training has not ended: no folder `autoencoder` in it yet")
    if options.lpips:
        load_lpips(options.lpips)


def _measure(checkpoint: CheckpointUnderTest, options: Options, console) -> dict:
    data = options.data or checkpoint.settings.data.path
    records = Mixture(data, "pixels")
    split = "validation" if sum(records.counts("validation")) else "train"
    clips = records.clips(split)
    settings, params = load_model(checkpoint.workdir / "autoencoder", Autoencoder, AutoencoderSettings)
    weights = load_lpips(options.lpips) if options.lpips else None
    measured, pictured = [], {}
    with progress_bar(console) as bar:
        task = bar.add_task("reconstruction", total=len(clips), numbers="")
        for index, clip in enumerate(bar.track(clips, task_id=task)):
            video = records.read(split, index)
            values, made = measure_reconstruction(params, settings, video, weights)
            size = f"{clip.width}x{clip.height}"
            about = {"source": clip.source, "start": clip.start, "size": size, "frames": clip.frames}
            if len(pictured) < PICTURES and clip.source not in pictured:
                name = f"reconstruction-{len(pictured)}.png"
                if jax.process_index() == 0:
                    draw_reconstruction(checkpoint.out / name, video, made)
                pictured[clip.source] = about = about | {"picture": name, "caption": clip.captions[0]}
            measured.append(about | values)
    header, rows = _table(measured[:40])
    console.print(terminal_table(header, rows))
    means = {}
    for key in MEASURES:
        if there := [values[key] for values in measured if key in values]:
            means[key] = float(np.mean(there))
    line = f"{checkpoint.name}: {_words(means)} on {len(measured)} {split} clips"
    console.print(line, highlight=False)
    return {"data": data, "split": split, **means, "clips": measured}


def _table(clips):
    """(header, rows) of what was measured of each clip."""
    keys = [key for key in MEASURES if any(key in clip for clip in clips)]
    rows = [
        (f"{clip['source']} at {clip['start']:.1f} s", clip["size"], clip["frames"], *(clip.get(k) for k in keys))
        for clip in clips
    ]
    return ("clip", "size", "frames", *(MEASURES[key] for key in keys)), rows


def _words(means):
    return ", ".join(f"{MEASURES[key].removesuffix(', dB')} {means[key]:.4g}" for key in MEASURES if key in means)


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    sections = []
    if len(results) > 1:
        keys = [key for key in MEASURES if any(key in values for values in results.values())]
        rows = [(MEASURES[key], *(values.get(key) for values in results.values())) for key in keys]
        note = "Means over the clips of each checkpoint's data."
        sections.append(Section("Reconstruction, side by side", note, [Table(("measure", *results), rows)]))
    for name, values in results.items():
        header, rows = _table(values["clips"])
        pictures = [
            Picture(
                folders[name] / clip["picture"],
                f"{clip['source']}: {clip['psnr']:.1f} dB, SSIM {clip['ssim']:.3f}. {clip['caption']}",
            )
            for clip in values["clips"]
            if "picture" in clip
        ]
        note = f"{_words(values)} on {len(values['clips'])} {values['split']} clips of {values['data']}."
        sections.append(Section(f"Reconstruction by {name}", note, [*pictures, Table(header, rows)]))
    return sections


def _samples(values: dict) -> list[Sample]:
    return [
        Sample(
            f"{clip['source']} {clip['start']} {clip['size']} {clip['frames']}",
            {MEASURES[key].removesuffix(", dB"): clip[key] for key in MEASURES if key in clip},
            clip["source"],
        )
        for clip in values.get("clips", ())
    ]


RECONSTRUCTION = Benchmark(
    ("autoencoder",),
    ("data", "lpips"),
    _measure,
    _show,
    _check,
    samples=_samples,
    better={"PSNR": "higher", "SSIM": "higher", "MS-SSIM": "higher", "LPIPS": "lower"},
)
