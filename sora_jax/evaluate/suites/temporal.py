"""The benchmark `temporal`: motion, flicker, seams and drift of samples beside those of real videos."""

import pathlib
from collections.abc import Mapping

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.core.errors import InputError
from sora_jax.evaluate.benchmark import Benchmark, Options, read_video, terminal_table
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.evaluate.metrics.motion import MEASURES, mean_motion
from sora_jax.evaluate.samples import captions_of, cells, make_samples, real_videos, repeat_prompts
from sora_jax.report.page import Section, Table

SAMPLES = 64


def _check(checkpoint: CheckpointUnderTest, options: Options):
    captions_of(checkpoint, options)
    for cell in cells(checkpoint, options):
        if cell.frames < 3:
            raise InputError(f"--suite=temporal: motion needs 3 frames or more, not {cell.frames}; see --frames")


def _measure(checkpoint: CheckpointUnderTest, options: Options, console) -> dict:
    stride = checkpoint.settings.autoencoder.temporal_stride
    values: dict = {"by_cell": {}}
    for cell in cells(checkpoint, options):
        prompts = repeat_prompts(captions_of(checkpoint, options), options.samples or SAMPLES)
        paths = make_samples(checkpoint, options, prompts, cell, console)

        found: dict[str, dict] = {}
        values["by_cell"][f"{cell.size}, {cell.frames} frames"] = found

        def measure(paths=paths, found=found):
            found["samples"] = mean_motion(map(read_video, paths), stride)

        run_on_first_host(measure)
        try:
            # On every process, as all of them decode.
            found["real"] = mean_motion(real_videos(checkpoint, options, cell, len(paths)), stride)
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


TEMPORAL = Benchmark(
    ("flow",), ("data", "samples", "prompts", "sizes", "frames", "seed", "videos"), _measure, _show, _check
)
