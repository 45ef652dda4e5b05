"""Benchmarks: what one needs, measures and shows; its values are kept, and not measured again."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import rich.console
import rich.table
from jax.experimental import multihost_utils

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.schema import SampleSettings
from sora_jax.core.storage import atomic_write
from sora_jax.data.media.video import probe, read_clip
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.report.page import Section

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
class Benchmark:
    """A benchmark.

    Args:
      objectives: training objectives of the checkpoints that it applies to.
      uses: names of the Options that its values depend on.
      measure: (checkpoint, options, console) -> values that JSON can hold. It runs on every process; the values
        of the first one count.
      show: (name -> values, name -> folder of its media) -> sections of the page, side by side. It runs on the
        first process.
      check: (checkpoint, options); raises InputError if something is missing, before anything is computed.
    """

    objectives: tuple[str, ...]
    uses: tuple[str, ...]
    measure: Callable[[CheckpointUnderTest, Options, rich.console.Console], dict]
    show: Callable[[Mapping[str, dict], Mapping[str, pathlib.Path]], list[Section]]
    check: Callable[[CheckpointUnderTest, Options], None] = lambda checkpoint, options: None


def measure_once(
    name: str,
    benchmark: Benchmark,
    checkpoint: CheckpointUnderTest,
    options: Options,
    console: rich.console.Console,
) -> dict:
    """The values of a benchmark: those kept by an earlier run of the same checkpoint and options, or new ones."""
    path = checkpoint.out / f"{name}.json"
    asked = {"checkpoint": checkpoint.content_hash} | {use: getattr(options, use) for use in benchmark.uses}
    asked = json.loads(json.dumps(asked))
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if bool(multihost_utils.broadcast_one_to_all(np.asarray(kept.get("asked") == asked))):
        console.print(f"{checkpoint.name}: {name}: already measured", highlight=False)
        return kept.get("values", {})
    values = benchmark.measure(checkpoint, options, console)

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"asked": asked, "values": values}, indent=1))

    run_on_first_host(write)
    return values


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
