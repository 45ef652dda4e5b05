"""Benchmarks: what one needs, measures and shows; its values are kept, and not measured again."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import rich.console
import rich.table
from jax.experimental import multihost_utils

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.schema import SampleSettings
from sora_jax.core.storage import atomic_write, digest
from sora_jax.data.media.video import probe, read_clip
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.evaluate.videos_under_test import VideosUnderTest
from sora_jax.report.page import Section

Subject = CheckpointUnderTest | VideosUnderTest

# (prompts, settings of their videos, number of the first prompt) -> each video's frames, [F, H, W, 3] uint8.
Sampler = Callable[[list[str], SampleSettings, int], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of benchmarks.

    Args:
      data: a data set by `prepare`; "": the one that a checkpoint was trained on.
      samples: number of samples for each size and length; 0: each benchmark's own.
      prompts: instead of the captions of the data set.
      sizes, frames: of the samples; (): those of the checkpoint's own config.
      seconds: length of long videos.
      videos: a folder of real videos; "": the held-out clips of the data set.
      lpips, videomae, clip, vbench: files or folders of weights.
      dimensions: of VBench; (): all whose weights are there.
      sampler: makes the videos; None: the checkpoint does.
    """

    data: str = ""
    samples: int = 0
    prompts: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()
    seconds: float = 60.0
    seed: int = 0
    videos: str = ""
    lpips: str = ""
    videomae: str = ""
    clip: str = ""
    vbench: str = ""
    dimensions: tuple[str, ...] = ()
    sampler: Sampler | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """What was measured of one sample: a video, or a held-out clip.

    Args:
      key: the same for the same prompt and noise of any subject; samples with equal keys are compared.
      values: measure -> a number, or whether the sample is right.
      group: samples of a group are not independent, for example those of one prompt; "": the key.
      weight: of the sample in the mean.
      video: relative to the folder of the subject; "": there is none to show.
      note: shown below the video, beside the prompt.
    """

    key: str
    values: Mapping[str, float | bool]
    group: str = ""
    weight: float = 1.0
    video: str = ""
    prompt: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Args:
      objectives: of the subjects that it applies to: "flow" and "autoencoder" are checkpoints of these training
        objectives, "videos" a folder of videos that others made.
      uses: names of the Options that its values depend on.
      measure: (checkpoint, options, console) -> values that JSON can hold. It runs on every process; the values
        of the first one count.
      show: (name -> values, name -> folder of its media) -> sections of the page, side by side. It runs on the
        first process.
      check: (checkpoint, options); raises InputError if something is missing, before anything is computed.
      samples: values -> what was measured of each sample, for intervals and comparisons.
      figures: values -> measures that have one number for all samples.
      better: measure -> "higher" or "lower"; a measure that is not in it is shown and not judged.
    """

    objectives: tuple[str, ...]
    uses: tuple[str, ...]
    measure: Callable[[Any, Options, rich.console.Console], dict]
    show: Callable[[Mapping[str, dict], Mapping[str, pathlib.Path]], list[Section]]
    check: Callable[[Any, Options], None] = lambda checkpoint, options: None
    samples: Callable[[dict], list[Sample]] = lambda values: []
    figures: Callable[[dict], dict[str, float]] = lambda values: {}
    better: Mapping[str, str] = dataclasses.field(default_factory=dict)


def measure_once(
    name: str,
    benchmark: Benchmark,
    checkpoint: Subject,
    options: Options,
    console: rich.console.Console,
) -> dict:
    """The values of a benchmark: those kept by an earlier run of the same content and options, or new ones."""
    asked = {"subject": checkpoint.content_hash, "sample": checkpoint.sample_settings}
    asked |= {use: getattr(options, use) for use in benchmark.uses}
    if isinstance(checkpoint, CheckpointUnderTest) and "data" in asked and not asked.get("prompts"):
        asked["data"] = checkpoint.data_hash(options.data)
    asked = json.loads(json.dumps(asked))
    path = checkpoint.out / f"{name}-{digest(asked)[:8]}.json"
    kept = _read_kept(path)
    if bool(multihost_utils.broadcast_one_to_all(np.asarray(kept.get("asked") == asked))):
        console.print(f"{checkpoint.name}: {name}: already measured", highlight=False)
        return kept.get("values", {})
    # Paths of videos elsewhere are relative to it, and lead through it.
    run_on_first_host(lambda: checkpoint.out.mkdir(parents=True, exist_ok=True))
    values = benchmark.measure(checkpoint, options, console)

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"asked": asked, "values": values}, indent=1))

    run_on_first_host(write)
    return values


def _read_kept(path: pathlib.Path) -> dict:
    """The content of a file of kept values; {} if it is absent or damaged."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def read_video(path: pathlib.Path) -> np.ndarray:
    """All frames of a video, [F, H, W, 3] uint8."""
    video = probe(path)
    return read_clip(video, (video.height, video.width), fps=video.fps or 1.0, frames=video.frames)


def terminal_table(header, rows) -> rich.table.Table:
    """A table for the terminal; numbers with four significant digits, None as an empty cell."""

    def text(cell):
        return f"{cell:.4g}" if isinstance(cell, float) else "" if cell is None else str(cell)

    table = rich.table.Table(*header)
    for row in rows:
        table.add_row(*map(text, row))
    return table


def side_by_side(results: Mapping[str, dict], key: str) -> list[tuple]:
    """Rows (group, a value of each checkpoint or None) of the tables {group: value} under a key."""
    groups = dict.fromkeys(group for values in results.values() for group in values.get(key, {}))
    return [(group, *(values.get(key, {}).get(group) for values in results.values())) for group in groups]
