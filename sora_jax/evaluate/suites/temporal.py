"""The benchmark `temporal`: motion, flicker, seams and drift of samples beside those of real videos."""

import os
import pathlib
from collections.abc import Mapping

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.core.errors import InputError
from sora_jax.evaluate.benchmark import Benchmark, Options, Sample, Subject, read_video, terminal_table
from sora_jax.evaluate.metrics.motion import MEASURES, mean_motion, measure_motion
from sora_jax.evaluate.samples import captions_of, cells, real_videos, repeat_prompts, video_sets
from sora_jax.report.page import Section, Table

SAMPLES = 64


def _check(checkpoint: Subject, options: Options):
    captions_of(checkpoint, options)
    for cell in cells(checkpoint, options):
        if cell.frames < 3:
            raise InputError(f"--suite=temporal: motion needs 3 frames or more, not {cell.frames}; see --frames")


def _measure(checkpoint: Subject, options: Options, console) -> dict:
    values: dict = {"by_cell": {}}

    def prompts_of(cell):
        return repeat_prompts(captions_of(checkpoint, options), options.samples or SAMPLES)

    for videos in video_sets(checkpoint, options, prompts_of, console):
        found: dict[str, dict] = {}
        values["by_cell"][videos.name] = found

        def measure(videos=videos, found=found):
            each = [measure_motion(read_video(path), videos.stride) for path in videos.paths]
            found["samples"] = mean_motion(each)
            about = zip(videos.keys(), videos.prompts, videos.paths, each, strict=True)
            found["samples"]["each"] = [
                {"key": key, "prompt": prompt, "video": os.path.relpath(path, checkpoint.out), "values": one}
                for key, prompt, path, one in about
            ]

        run_on_first_host(measure)
        if videos.cell is None:
            continue
        try:
            # On every process, as all of them decode.
            real = real_videos(checkpoint, options, videos.cell, len(videos.paths))
            found["real"] = mean_motion([measure_motion(video, videos.stride) for video in real])
        except InputError as error:  # real videos are optional
            console.print(f"note: nothing to compare with: {error}", highlight=False, soft_wrap=True)
    header = ("of", "which", *MEASURES)
    rows = [(c, w, *(m[k] for k in MEASURES)) for c, found in values["by_cell"].items() for w, m in found.items()]
    console.print(terminal_table(header, rows))
    return values


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    rows = []
    for name, values in results.items():
        for cell, found in values["by_cell"].items():
            rows += [
                (f"{name}, {which}", cell, *(m[k] for k in MEASURES), m["videos"]) for which, m in found.items()
            ]
    note = "Motion, flicker and drift are in levels of 255; samples should have as much as real videos. Seam and "
    note += "sharpness are best at 1."
    header = ("videos", "size", "motion", "flicker", "seam", "drift", "sharpness", "how many")
    return [Section("Motion", note, [Table(header, rows)])]


def _samples(values: dict) -> list[Sample]:
    return [
        Sample(
            one["key"],
            {name: value for name, value in one["values"].items() if value is not None},
            one["prompt"],
            video=one["video"],
            prompt=one["prompt"],
        )
        for found in values.get("by_cell", {}).values()
        for one in found["samples"]["each"]
    ]


TEMPORAL = Benchmark(
    ("flow", "videos"),
    ("data", "samples", "prompts", "sizes", "frames", "seed", "videos"),
    _measure,
    _show,
    _check,
    samples=_samples,
    better={"flicker": "lower", "drift": "lower"},
)
