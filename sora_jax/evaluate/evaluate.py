"""Evaluate a checkpoint: numbers as JSON, a table for people, and a page with pictures."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import rich.console
import rich.table

from sora_jax.data.mix import Mix
from sora_jax.data.stream import validation_rows
from sora_jax.distributed import on_first
from sora_jax.errors import InputError
from sora_jax.evaluate.losses import TIMES, validation_losses
from sora_jax.evaluate.pictures import draw_reconstruction
from sora_jax.evaluate.reconstruction import measure_reconstruction
from sora_jax.evaluate.report import Picture, Section, Table, write_page
from sora_jax.files import replacing
from sora_jax.mesh import local_rows, make_mesh
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.settings import AutoencoderSettings, MeshSettings, Settings
from sora_jax.train.checkpoint import find_checkpoint, read_meta
from sora_jax.train.frozen import restore_model
from sora_jax.train.metrics import progress_bar
from sora_jax.weights.store import load_model

PICTURES = 8  # at most, in a report


def evaluate(
    checkpoint: pathlib.Path, out: pathlib.Path, *, data: str, mesh: MeshSettings, console: rich.console.Console
) -> dict:
    """Measure what the checkpoint is: a transformer's validation loss, or an autoencoder's reconstructions.

    Args:
      checkpoint: workdir of a training run.
      out: folder for evaluation.json, index.html and its pictures.
      data: a data set by `prepare`; "": the one it was trained on.
    Returns: what evaluation.json says.
    Raises: InputError if there is no checkpoint, or the data are of another kind.
    """
    folder, step = find_checkpoint(checkpoint)
    settings, _ = read_meta(folder, step)
    data = data or settings.data.path
    with jax.set_mesh(make_mesh(mesh)):
        if settings.objective == "flow":
            values, sections = _evaluate_flow(folder, step, settings, data, console)
        else:
            values, sections = _evaluate_autoencoder(pathlib.Path(checkpoint), data, out, console)
    result = {"checkpoint": str(checkpoint), "step": step, "data": data, "objective": settings.objective, **values}

    def write():
        with replacing(out / "evaluation.json") as temporary:
            temporary.write_text(json.dumps(result, indent=1))
        summary = f"{settings.objective} after {step:,} updates, on {data}"
        write_page(out / "index.html", f"Evaluation of {pathlib.Path(checkpoint).name}", summary, sections)

    on_first(write)
    return result


def _evaluate_flow(folder, step, settings: Settings, data: str, console):
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, path=data))
    stream = validation_rows(settings, rows=local_rows(jax.sharding.get_mesh(), settings.data.batch))
    params = restore_model(folder, step, settings)
    with progress_bar(console) as bar:
        task = bar.add_task("validation loss", total=stream.batches * len(TIMES), numbers="")
        values = validation_losses(settings, params, stream.iterate(), lambda: bar.advance(task))
    tables = []
    for key, name in (("by_time", "time"), ("by_size", "size"), ("by_frames", "frames")):
        rows = list(values[key].items())
        console.print(terminal_table((name, "loss"), rows))
        tables.append(Table((name, "loss"), rows))
    console.print(f"loss {values['loss']:.4f} on {values['clips']} held-out clips", highlight=False)
    note = f"{values['loss']:.4f} on {values['clips']} held-out clips; time 0 is data, 1 is noise."
    return values, [Section("Validation loss", note, tables)]


def _evaluate_autoencoder(workdir, data: str, out: pathlib.Path, console):
    records = Mix(data, "pixels")
    split = "validation" if sum(records.counts("validation")) else "train"
    clips = records.clips(split)
    if not (workdir / "autoencoder").is_dir():
        raise InputError(f"{workdir}: its training has not ended: no folder `autoencoder` in it yet")
    settings, params = load_model(workdir / "autoencoder", Autoencoder, AutoencoderSettings)
    rows, measured, sheets = [], [], []
    with progress_bar(console) as bar:
        task = bar.add_task("reconstruction", total=len(clips), numbers="")
        for index, clip in enumerate(bar.track(clips, task_id=task)):
            video = records.read(split, index)
            values, made = measure_reconstruction(params, settings, video)
            name = f"{clip.source} at {clip.start:.1f} s"
            size = f"{clip.width}x{clip.height}"
            rows.append((name, size, clip.frames, values["psnr"], values["ssim"]))
            measured.append(
                {"source": clip.source, "start": clip.start, "size": size, "frames": clip.frames, **values}
            )
            if len(sheets) < PICTURES and clip.source not in [sheet[0] for sheet in sheets]:
                picture = out / f"reconstruction-{len(sheets)}.png"
                if jax.process_index() == 0:
                    draw_reconstruction(picture, video, made)
                caption = f"{name}: {values['psnr']:.1f} dB, SSIM {values['ssim']:.3f}. {clip.captions[0]}"
                sheets.append((clip.source, Picture(picture, caption)))
    header = ("clip", "size", "frames", "PSNR, dB", "SSIM")
    console.print(terminal_table(header, rows[:40]))
    means = {key: float(np.mean([values[key] for values in measured])) for key in ("psnr", "ssim")}
    line = f"PSNR {means['psnr']:.2f} dB, SSIM {means['ssim']:.4f} on {len(rows)} {split} clips"
    console.print(line, highlight=False)
    values = means | {"split": split, "clips": measured}
    pictures = [sheet for _, sheet in sheets]
    return values, [Section("Reconstruction", f"{line}.", [*pictures, Table(header, rows)])]


def terminal_table(header, rows) -> rich.table.Table:
    """A table for the terminal; numbers with four digits that count."""
    table = rich.table.Table(*header)
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    return table
