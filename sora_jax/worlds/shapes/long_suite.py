"""The benchmark `long`: drift of colours, sharpness, motion and things over a long video."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.core.progress import progress_bar
from sora_jax.data.media.video import probe, read_frames
from sora_jax.evaluate.benchmark import Benchmark, Options, terminal_table
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.evaluate.metrics.motion import STILL_BELOW, gradient
from sora_jax.evaluate.samples import captions_of, cells, digest, repeat_prompts, sample_by_command
from sora_jax.generate.output.writer import write_webp
from sora_jax.generate.request import TaskInputs, check_inputs
from sora_jax.report.figures import draw_contact_sheet, draw_time_series
from sora_jax.report.page import Clip, Gallery, Picture, Section, Table
from sora_jax.worlds.shapes.detector import read_scene
from sora_jax.worlds.shapes.prompt_suite import agreement
from sora_jax.worlds.shapes.prompts import read_prompt

SAMPLES = 4
SPANS = 6  # equal parts of a video that are measured
SHOWN = 12  # frames of each video on the sheet and in its preview
LASTING = ("shape", "colour", "size", "background", "count")  # motion changes at an edge
MEASURES = {
    "colour": 20.0,
    "sharpness": 1.2,
    "motion": 1.5,
    "as asked": 1.05,
}  # and the relative heights of their panels


def measure_spans(spans: Iterable[np.ndarray], prompt: str, *, window: int, fps: float) -> list[dict]:
    """Changes of a long video from its first span on.

    Args:
      spans: [F, H, W, 3] uint8 each.
      window: frames of a piece that is compared with the prompt.
    Returns: for each span
      colour: distance in RGB from the mean colour of the first span, in levels of 255.
      sharpness, motion: mean gradient, and mean absolute difference of successive frames, over those of the first
        span; None if the first span is flat or still.
      as asked: share of the pieces that show the prompt, motion and speed left out; None for prompts that are
        not of the shapes world.
    """
    try:
        read_prompt(prompt)
        of_shapes = True
    except InputError:
        of_shapes = False
    made: list[dict] = []
    first, before = None, None
    for span in spans:
        colours, gradients, changes = [], [], []
        for frame in span:
            x = frame.astype(np.float32)
            colours.append(x.mean(axis=(0, 1)))
            gradients.append(gradient(x[None]))
            if before is not None:
                changes.append(np.abs(x - before).mean())
            before = x
        own = np.mean(colours, axis=0), float(np.mean(gradients)), float(np.mean(changes))
        first = first or own
        found = {"colour": float(np.linalg.norm(own[0] - first[0]))}
        for name, value, usual in zip(("sharpness", "motion"), own[1:], first[1:], strict=True):
            found[name] = value / usual if usual > STILL_BELOW else None
        found["as asked"] = _as_asked(span, prompt, window, fps) if of_shapes else None
        made.append(found)
    return made


def _as_asked(span, prompt, window, fps):
    pieces = [span[n : n + window] for n in range(0, len(span) - window + 1, window)] or [span]
    found = [agreement(prompt, read_scene(piece, fps=fps)) for piece in pieces]
    return float(np.mean([all(one[name] for name in LASTING if name in one) for one in found]))


def _check(checkpoint: CheckpointUnderTest, options: Options):
    if options.sampler:
        raise InputError("--suite=long: takes no other sampler, as it measures the command `sample`")
    check_inputs(TaskInputs(seconds=options.seconds))
    if checkpoint.settings.transformer.condition_channels:
        raise InputError(
            f"--suite=long: {checkpoint.workdir} is an image-to-video model, which makes no long videos"
        )
    captions_of(checkpoint, options)
    least = 1 + 2 * checkpoint.settings.autoencoder.temporal_stride
    for cell in cells(checkpoint, options):
        if cell.frames < least:
            raise InputError(f"--suite=long: {cell.frames} frames are too few; {least} are enough, see --frames")
        if options.seconds * cell.fps < 3 * SPANS:
            raise InputError(
                f"--seconds={options.seconds:g}: {SPANS} spans of 3 frames or more are measured, which is "
                f"{3 * SPANS / cell.fps:.2g} s"
            )


def _measure(checkpoint: CheckpointUnderTest, options: Options, console) -> dict:
    values: dict = {"by_cell": {}}
    for cell in cells(checkpoint, options):
        prompts = repeat_prompts(captions_of(checkpoint, options), options.samples or SAMPLES)
        paths = _make(checkpoint, options, prompts, cell, console)
        name = f"{cell.size}, {cell.frames} frames at once"

        def measure(prompts=prompts, paths=paths, cell=cell, name=name):
            values["by_cell"][name] = _summary(checkpoint.out, prompts, paths, cell, options.seconds)

        run_on_first_host(measure)
    for name, found in values["by_cell"].items():
        header, rows = _table(found)
        console.print(terminal_table((name, *header[1:]), rows))
    return values


def _make(checkpoint, options, prompts, cell: SampleSettings, console) -> list[pathlib.Path]:
    """Make a long video for each prompt; complete ones are kept, an interrupted one is continued."""
    made_of = [options.seed, options.seconds, checkpoint.content_hash, dataclasses.asdict(cell)]
    folder = checkpoint.out / "long" / digest(made_of)
    paths = [folder / f"{n:03}-{digest(prompt)}.mp4" for n, prompt in enumerate(prompts)]
    with progress_bar(console) as bar:
        task = bar.add_task(f"{checkpoint.name}: {options.seconds:g} s, {cell.size}", total=len(paths), numbers="")
        for n, (prompt, path) in enumerate(zip(prompts, paths, strict=True)):
            sample_by_command(
                checkpoint,
                prompt,
                path,
                cell,
                TaskInputs(seconds=options.seconds),
                seed=options.seed + n,
                on_progress=lambda done, total, n=n: bar.update(task, completed=n + done / total),
            )
            bar.update(task, completed=n + 1)
    return paths


def _summary(out, prompts, paths, cell, seconds):
    """Values of the spans and their means; also writes a contact sheet and previews."""
    videos, shown = [], []
    for prompt, path in zip(prompts, paths, strict=True):
        frames: list[np.ndarray] = []
        spans = measure_spans(_spans(path, frames), prompt, window=cell.frames, fps=cell.fps)
        shown.append(np.stack(frames))
        preview = path.with_suffix(".webp")
        write_webp(preview, shown[-1], 2.0, metadata={"prompt": prompt})
        files = {"video": str(path.relative_to(out)), "preview": str(preview.relative_to(out))}
        videos.append({"prompt": prompt, **files, "spans": spans})
    sheet = paths[0].parent / "sheet.png"
    draw_contact_sheet(sheet, shown, prompts, columns=1, frames=SHOWN)
    spans = []
    for n in range(SPANS):
        means: dict = {"from": seconds * n / SPANS, "to": seconds * (n + 1) / SPANS}
        for key in MEASURES:
            there = [v["spans"][n][key] for v in videos if v["spans"][n][key] is not None]
            means[key] = float(np.mean(there)) if there else None
        spans.append(means)
    return {"spans": spans, "videos": videos, "sheet": str(sheet.relative_to(out))}


def _spans(path, shown):
    """The spans of a video; some frames of each are appended to `shown`."""
    video = probe(path)
    size = (video.height, video.width)
    stream = (frame for (frame,) in read_frames(video, [size], fps=video.fps))
    for n in range(SPANS):
        length = video.frames * (n + 1) // SPANS - video.frames * n // SPANS
        span = np.stack(list(itertools.islice(stream, length)))
        shown.extend(span[length * (2 * np.arange(SHOWN // SPANS) + 1) * SPANS // (2 * SHOWN)])
        yield span


def _table(found):
    header = ("seconds", *MEASURES)
    return header, [(f"{s['from']:g} to {s['to']:g}", *(s[key] for key in MEASURES)) for s in found["spans"]]


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    parts: list = []
    courses: dict[str, dict[str, list]] = {}
    for name, values in results.items():
        for cell, found in values["by_cell"].items():
            title = f"{name}, {cell}"
            header, rows = _table(found)
            parts.append(Table(header, rows, caption=title))
            parts.append(Picture(folders[name] / found["sheet"], f"{SHOWN} frames of each video by {title}."))
            parts.append(
                Gallery(
                    [
                        Clip(folders[name] / v["video"], folders[name] / v["preview"], v["prompt"])
                        for v in found["videos"]
                    ]
                )
            )
            middles = [(s["from"] + s["to"]) / 2 for s in found["spans"]]
            courses[title] = {"seconds": middles} | {k: [s[k] for s in found["spans"]] for k in MEASURES}
    picture = next(iter(folders.values())).parent / "long.png"
    draw_time_series(picture, courses, MEASURES)
    note = "Videos made window by window. Colour is the distance of the mean colour from that of the first part, "
    note += "in levels of 255; sharpness and motion are 1 without change."
    return [Section("Long videos", note, [Picture(picture, "From the first part to the last one."), *parts])]


LONG = Benchmark(
    ("flow",), ("data", "samples", "prompts", "sizes", "frames", "seed", "seconds"), _measure, _show, _check
)
