"""Pictures of runs and results: loss curves, reconstructions beside their inputs, contact sheets."""

import json
import math
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, atomic_write

INK, FAINT, PAPER, LINE, ACCENT = "#1f2430", "#6b7280", "#ffffff", "#d8dce3", "#3b5bdb"
COLOURS = (ACCENT, "#f08c00", "#2f9e44", "#ae3ec9", "#e03131", "#1098ad")  # of series in one panel
GAP, MARGIN, TEXT = 6, 16, 14  # pixels
# Matplotlib's font has many alphabets; Pillow's own lacks even the multiplication sign.
FONT = pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def read_metrics(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The columns of a metrics.jsonl, by step.

    A step that was trained again after a restart has its last values. A last line that a crash cut short is left
    out. Absent values are NaN.

    Returns: name -> [steps] float64, "step" among them, in rising order.
    Raises: InputError if the file is absent, has no step, or is not JSON lines.
    """
    path = as_path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; `train` writes metrics.jsonl into its --workdir")
    lines, rows = path.read_text().splitlines(), {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[row["step"]] = row
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise InputError(f'{path}:{number}: not a JSON object with a "step"') from error
    if not rows:
        raise InputError(f"{path}: no step in it yet")
    names = {name for row in rows.values() for name, value in row.items() if isinstance(value, int | float)}
    return {name: np.array([rows[step].get(name, math.nan) for step in sorted(rows)], float) for name in names}


def draw_loss_curves(path: str | os.PathLike, runs: Mapping[str, str | os.PathLike]) -> None:
    """Draw the loss of runs over their steps as a PNG, a panel each: every value, and the running mean.

    Args:
      runs: title of the panel -> the run's metrics.jsonl.
    Raises: InputError as `read_metrics` does, and for a run without a loss.
    """
    figure = Figure(figsize=(6.4 * len(runs), 3.8), facecolor=PAPER)
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15)  # inches
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for panel, (title, file) in zip(panels, runs.items(), strict=True):
        metrics = read_metrics(file)
        if "loss" not in metrics:
            raise InputError(f"{file}: no line of it has a loss")
        _draw_curve(panel, title, metrics["step"], metrics["loss"])
        if "held_out_loss" in metrics:
            there = np.isfinite(metrics["held_out_loss"])
            held_out = metrics["step"][there], metrics["held_out_loss"][there]
            panel.plot(*held_out, "o-", color=COLOURS[1], markersize=3, linewidth=1.2, label="held out")
            panel.legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=144, format="png")


def _draw_curve(panel, title, steps, values):
    means = smoothed(values)
    finite = values[np.isfinite(values)]
    panel.plot(steps, values, color=ACCENT, alpha=0.25, linewidth=0.8)
    panel.plot(steps, means, color=ACCENT, linewidth=1.8)
    # A line of few points hides them.
    if len(steps) < 30:
        panel.plot(steps, values, ".", color=ACCENT, alpha=0.6, markersize=4)
    for step in steps[~np.isfinite(values)]:
        panel.axvline(step, color="#e03131", linewidth=1, alpha=0.6)
    if len(finite) and finite.min() > 0 and finite.max() / finite.min() > 5:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
    panel.set_title(f"{means[-1]:.4g} after {steps[-1]:,.0f} steps", loc="right", color=FAINT, fontsize=10)
    panel.set_xlabel("step", color=FAINT)
    panel.set_ylabel("loss", color=FAINT)
    _quieten(panel)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running means of finite values, [steps] -> [steps], over a fiftieth of the steps to either side."""
    reach = len(values) // 50
    finite = np.isfinite(values)
    sums = np.concatenate([[0], np.cumsum(np.where(finite, values, 0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    with np.errstate(invalid="ignore"):
        return (sums[last] - sums[first]) / (counts[last] - counts[first])


def draw_reconstruction(
    path: str | os.PathLike, video: np.ndarray, reconstruction: np.ndarray, *, columns: int = 6, amplify: float = 4
) -> None:
    """Draw frames of a video, their reconstruction and the error between them as a PNG of three rows.

    Args:
      video, reconstruction: [F, H, W, 3] uint8.
      columns: maximum number of frames, evenly spaced from the first to the last.
      amplify: factor of the absolute error in the picture.
    Raises: InputError if the two differ in size.
    """
    if video.shape != reconstruction.shape:
        raise InputError(f"{path}: a video of {list(video.shape)} beside one of {list(reconstruction.shape)}")
    chosen = spread(len(video), columns)
    error = np.abs(reconstruction[chosen].astype(np.float32) - video[chosen].astype(np.float32)) * amplify
    rows = {
        "input": video[chosen],
        "reconstruction": reconstruction[chosen],
        f"error ×{amplify:g}": np.clip(error, 0, 255).astype(np.uint8),
    }
    font = PIL.ImageFont.truetype(FONT, TEXT)
    strips = [strip(frames, box=240) for frames in rows.values()]
    label = max(math.ceil(font.getlength(name)) for name in rows) + GAP * 2
    height = strips[0].height
    sheet = PIL.Image.new(
        "RGB", (MARGIN * 2 + label + strips[0].width, MARGIN * 2 + 3 * height + 2 * GAP), color=PAPER
    )
    pen = PIL.ImageDraw.Draw(sheet)
    for row, (name, frames) in enumerate(zip(rows, strips, strict=True)):
        top = MARGIN + row * (height + GAP)
        pen.text((MARGIN, top + height // 2), name, fill=INK, font=font, anchor="lm")
        sheet.paste(frames, (MARGIN + label, top))
    save_png(path, sheet)


def draw_contact_sheet(
    path: str | os.PathLike,
    videos: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    columns: int = 3,
    frames: int = 4,
) -> None:
    """Draw videos as a PNG, each as a strip of frames above its caption.

    Args:
      videos: each [F, H, W, 3] uint8; sizes and lengths may differ.
      captions: one per video.
      columns: videos side by side.
      frames: maximum number of frames per video, evenly spaced from the first to the last.
    """
    font = PIL.ImageFont.truetype(FONT, TEXT)
    strips = [strip(video[spread(len(video), frames)], box=128) for video in videos]
    width = max(240, *(image.width for image in strips))
    texts = [wrapped(caption, font, width) for caption in captions]
    line = TEXT + 4
    rows = [slice(start, start + columns) for start in range(0, len(strips), columns)]
    heights = [
        max(image.height + GAP + line * len(text) for image, text in zip(strips[row], texts[row], strict=True))
        for row in rows
    ]
    across = min(columns, len(strips))
    size = (MARGIN + across * (width + MARGIN), MARGIN + sum(height + MARGIN for height in heights))
    sheet = PIL.Image.new("RGB", size, color=PAPER)
    pen, top = PIL.ImageDraw.Draw(sheet), MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, (image, text) in enumerate(zip(strips[row], texts[row], strict=True)):
            left = MARGIN + column * (width + MARGIN)
            sheet.paste(image, (left, top))
            pen.multiline_text((left, top + image.height + GAP), "\n".join(text), fill=INK, font=font, spacing=4)
        top += height + MARGIN
    save_png(path, sheet)


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` indices below `count`, evenly spaced from the first to the last."""
    return np.unique(np.rint(np.linspace(0, count - 1, min(count, most))).astype(int))


def strip(frames: np.ndarray, *, box: int) -> PIL.Image.Image:
    """Frames [F, H, W, 3] side by side, each as large as a square of `box` pixels allows."""
    _, H, W, _ = frames.shape
    factor = box / max(H, W)
    if factor >= 1:  # whole factors keep pixels square and sharp
        factor = math.floor(factor)
    size = (max(1, round(W * factor)), max(1, round(H * factor)))
    how = PIL.Image.Resampling.NEAREST if factor >= 1 else PIL.Image.Resampling.LANCZOS
    sheet = PIL.Image.new("RGB", (len(frames) * (size[0] + 2) - 2, size[1]), color=PAPER)
    for index, frame in enumerate(frames):
        sheet.paste(PIL.Image.fromarray(frame).resize(size, how), (index * (size[0] + 2), 0))
    return sheet


def wrapped(text: str, font: PIL.ImageFont.FreeTypeFont, width: int) -> list[str]:
    """At most three lines of text that fit into a width in pixels; an ellipsis stands for the rest."""
    for letters in range(width // 4, 2, -1):
        lines = textwrap.wrap(text, letters, max_lines=3, placeholder=" …") or [""]
        if all(font.getlength(line) <= width for line in lines):
            break
    return lines


def save_png(path, image):
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def draw_shares(
    path: str | os.PathLike,
    results: Mapping[str, Mapping[str, Mapping]],
    chance: Mapping[str, Mapping[str, float]],
) -> None:
    """Draw shares with their intervals as a PNG of bars, grouped by attribute, a bar for each checkpoint.

    Args:
      results: checkpoint -> attribute -> {"share", "low", "high"}, in [0, 1].
      chance: checkpoint -> attribute -> the share by chance, marked by a line across the bar.
    """
    names = list(dict.fromkeys(name for values in results.values() for name in values))
    figure = Figure(figsize=(max(7.0, 1.1 * len(names)), 3.8), layout="constrained", facecolor=PAPER)
    panel = figure.subplots()
    width = 0.8 / len(results)
    for number, (checkpoint, values) in enumerate(results.items()):
        there = [(i, name) for i, name in enumerate(names) if name in values]
        x = np.array([i + (number - (len(results) - 1) / 2) * width for i, _ in there])
        share, low, high = (
            np.array([values[name][key] for _, name in there]) * 100 for key in ("share", "low", "high")
        )
        panel.bar(x, share, width * 0.92, color=COLOURS[number % len(COLOURS)], label=checkpoint, zorder=2)
        reach = np.maximum([share - low, high - share], 0)  # rounding
        panel.errorbar(x, share, reach, fmt="none", ecolor=INK, capsize=3, lw=1, zorder=3)
        marks = [100 * chance[checkpoint].get(name, math.nan) for _, name in there]
        panel.hlines(marks, x - width / 2, x + width / 2, color=INK, linestyles="dotted", lw=1.6, zorder=4)
    panel.set_xticks(range(len(names)), names)
    panel.set_ylim(0, 105)
    panel.set_ylabel("% of samples", color=FAINT)
    panel.set_title("dotted: captions shuffled", loc="right", color=FAINT, fontsize=10)
    _quieten(panel, axis="y")
    if len(results) > 1:
        panel.legend(loc="upper left", bbox_to_anchor=(0, 1.14), ncols=len(results), frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=144, format="png")


def draw_time_series(
    path: str | os.PathLike, series: Mapping[str, Mapping[str, Sequence]], measures: Mapping[str, float]
) -> None:
    """Draw measures over the time of videos as a PNG, a panel for each measure, a line for each series.

    Args:
      series: title -> {"seconds": times, measure: values at these times, None: absent}.
      measures: name -> upper limit of its panel, at least.
    """
    figure = Figure(figsize=(3.6 * len(measures), 3.2), layout="constrained", facecolor=PAPER)
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for panel, (measure, least) in zip(panels, measures.items(), strict=True):
        for number, (title, values_of) in enumerate(series.items()):
            values = np.array([math.nan if value is None else value for value in values_of[measure]])
            colour = COLOURS[number % len(COLOURS)]
            panel.plot(values_of["seconds"], values, "o-", color=colour, label=title, markersize=4)
        panel.set_ylim(0, max(least, panel.get_ylim()[1]))
        panel.set_title(measure, loc="left", color=INK, fontsize=12, fontweight="bold")
        panel.set_xlabel("seconds", color=FAINT)
        _quieten(panel)
    if len(series) > 1:
        figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=144, format="png")


def draw_course(
    path: str | os.PathLike, panels: Mapping[str, Sequence[tuple]], label: str, *, columns: int = 4
) -> None:
    """Draw measures over a step or a setting as a PNG, a panel each, with intervals.

    Args:
      panels: measure -> (place, value, low, high) in order; places are numbers or texts, low and high may be None.
      label: of the places.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained", facecolor=PAPER)
    for number, (measure, points) in enumerate(panels.items()):
        panel = figure.add_subplot(rows, columns, number + 1)
        places, values, *ends = zip(*points, strict=True)
        numeric = all(isinstance(place, int | float) for place in places)
        x = np.array(places if numeric else range(len(places)), float)
        order = np.argsort(x, kind="stable")
        low, high = (
            np.array([v if end is None else end for v, end in zip(values, side, strict=True)], float)[order]
            for side in ends
        )
        panel.fill_between(x[order], low, high, color=ACCENT, alpha=0.15, linewidth=0)
        panel.plot(x[order], np.array(values, float)[order], "o-", color=ACCENT, markersize=4)
        if not numeric:
            panel.set_xticks(range(len(places)), places)
        elif max(x) >= 10_000:
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:,g}k"))
        panel.set_title(measure, loc="left", color=INK, fontsize=10, fontweight="bold")
        panel.set_xlabel(label, color=FAINT)
        _quieten(panel)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=144, format="png")


def _quieten(panel, axis="both"):
    """Faint lines and labels, no frame."""
    panel.grid(True, axis=axis, color=LINE, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(colors=FAINT, which="both")
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)
