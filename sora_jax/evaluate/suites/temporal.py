"""How videos move: flicker, motion energy, seams between decoded pieces, drift from beginning to end."""

import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.core.errors import InputError
from sora_jax.evaluate.benchmark import Benchmark, Options, read_video, terminal_table
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.evaluate.samples import captions_of, cells, make_samples, real_videos, repeat_prompts
from sora_jax.report.page import Section, Table

SAMPLES = 64
MEASURES = ("motion", "flicker", "seam", "drift", "sharpness")
STANDS = 0.25  # levels; frames that differ by less do not move


def measure_motion(video: np.ndarray, stride: int) -> dict[str, float | None]:
    """How one video moves, in levels of 255 where nothing else is said.

    motion: mean absolute difference of successive frames.
    flicker: half the absolute second difference in time, its median over pixels, its mean over frames: 0 for what
      stands, moves over less than half of the picture, or changes steadily; v for what alternates by v.
    seam: motion across the borders of the autoencoder's latent frames over motion within them; 1 is none. None if
      nothing moves, or there is no frame within one.
    drift: distance in RGB between the mean colours of the first and of the last quarter.
    sharpness: mean gradient of the last quarter over that of the first; 1 is no change. None for flat pictures.

    Args:
      video: uint8 [F, H, W, 3], at least 3 frames.
      stride: frames of a latent frame; the first holds one.
    Raises: InputError if the video is too short.
    """
    if len(video) < 3:
        raise InputError(f"motion is measured of 3 frames or more, not of {len(video)}")
    x = video.astype(np.float32)
    steps = np.abs(np.diff(x, axis=0))
    change = steps.mean(axis=(1, 2, 3))
    second = np.abs(x[2:] - 2 * x[1:-1] + x[:-2]).mean(axis=-1) / 2
    border = np.arange(len(change)) % stride == 0  # of frames (0, 1), (stride, stride + 1) ...
    within = change[~border].mean() if (~border).any() else 0.0
    quarter = max(1, len(video) // 4)
    colours = [part.mean(axis=(0, 1, 2)) for part in (x[:quarter], x[-quarter:])]
    first, last = (gradient(part) for part in (x[:quarter], x[-quarter:]))
    return {
        "motion": float(change.mean()),
        "flicker": float(np.median(second, axis=(1, 2)).mean()),
        "seam": float(change[border].mean() / within) if within > STANDS else None,
        "drift": float(np.linalg.norm(colours[1] - colours[0])),
        "sharpness": float(last / first) if first > STANDS else None,
    }


def gradient(x: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels, down and across, of [F, H, W, 3]."""
    return float(np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=2)).mean())


def means_of(videos: Iterable[np.ndarray], stride: int) -> dict[str, float | None]:
    """Means over videos, each measure over those that have it; "videos": how many there are."""
    found = [measure_motion(video, stride) for video in videos]
    means: dict[str, float | None] = {}
    for name in MEASURES:
        there = [values[name] for values in found if values[name] is not None]
        means[name] = float(np.mean(there)) if there else None
    return means | {"videos": len(found)}


def _check(checkpoint: CheckpointUnderTest, options: Options):
    captions_of(checkpoint, options)
    for cell in cells(checkpoint, options):
        if cell.frames < 3:
            raise InputError(f"--suite=temporal: {cell.frames} frames do not move; 3 or more do, see --frames")


def _measure(checkpoint: CheckpointUnderTest, options: Options, console) -> dict:
    stride = checkpoint.settings.autoencoder.temporal_stride
    values: dict = {"by_cell": {}}
    for cell in cells(checkpoint, options):
        prompts = repeat_prompts(captions_of(checkpoint, options), options.samples or SAMPLES)
        paths = make_samples(checkpoint, options, prompts, cell, console)

        found = values["by_cell"][f"{cell.size}, {cell.frames} frames"] = {}

        def measure(paths=paths, found=found):
            found["samples"] = means_of(map(read_video, paths), stride)

        run_on_first_host(measure)
        try:
            # On every process: all of them decode.
            found["real"] = means_of(real_videos(checkpoint, options, cell, len(paths)), stride)
        except InputError as error:  # there need be none
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
    note = "Levels are of 255. What is real has its own motion and flicker: samples should have as much. "
    note += "Seam and sharpness are 1 where nothing is wrong, drift is that of the scene."
    header = ("videos", "size", "motion", "flicker", "seam", "drift", "sharpness", "how many")
    return [Section("Motion", note, [Table(header, rows)])]


TEMPORAL = Benchmark(
    ("flow",), ("data", "samples", "prompts", "sizes", "frames", "seed", "videos"), _measure, _show, _check
)
