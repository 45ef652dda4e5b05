"""What is evaluated, and how: a checkpoint, the wishes of whoever asks, and what has been measured already."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import rich.console
import rich.table
from jax.experimental import multihost_utils

from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.model_folder import model_hash
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.load import to_json
from sora_jax.config.schema import SampleSettings, Settings
from sora_jax.core.storage import atomic_write
from sora_jax.data.prepare.decode import probe, read_clip
from sora_jax.generate.pipeline import Generator, load_generator
from sora_jax.report.page import Section

# Prompts, the settings of their videos, and the number of the first -> each one's frames, [F, H, W, 3] uint8.
Sampler = Callable[[list[str], SampleSettings, int], Iterable[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured with.

    data: a data set by `prepare`; "": the one that a checkpoint was trained on.
    samples: how many, of each size and length; 0: what each suite takes by itself.
    prompts: instead of the captions of the data set.
    sizes, frames: of the samples; (): those of the checkpoint's own config.
    seconds: of long videos.
    videos: a folder of real ones; "": the data set's held-out clips.
    lpips, videomae, clip: where weights are.
    sampler: makes the videos; None: the checkpoint.
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
    sampler: Sampler | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
    """A checkpoint under evaluation; `out` is the folder for what is made of it."""

    name: str
    workdir: pathlib.Path
    folder: pathlib.Path
    step: int
    settings: Settings
    out: pathlib.Path

    @functools.cached_property
    def generator(self) -> Generator:
        return load_generator(self.workdir)

    @functools.cached_property
    def identity(self) -> str:
        """16 hex digits that change with the checkpoint."""
        step = self.folder / str(self.step)
        written = step.stat().st_mtime_ns if step.is_dir() else model_hash(self.folder)
        text = f"{self.step} {written} {to_json(self.settings)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Suite:
    """Something to measure.

    objectives: of checkpoints that it can be measured of.
    uses: names of the Options on which its values depend.
    measure: (subject, options, console) -> values that JSON can hold; called on every process, and those of the
      first one count.
    show: (name -> values, name -> the folder of its media) -> sections of the page, side by side; called on
      the first process.
    check: (subject, options): raises InputError, before anything is computed, if something is missing.
    """

    objectives: tuple[str, ...]
    uses: tuple[str, ...]
    measure: Callable[[Subject, Options, rich.console.Console], dict]
    show: Callable[[Mapping[str, dict], Mapping[str, pathlib.Path]], list[Section]]
    check: Callable[[Subject, Options], None] = lambda subject, options: None


def open_subject(workdir: pathlib.Path, name: str, out: pathlib.Path) -> Subject:
    """The newest checkpoint of a training run. Raises: InputError if there is none."""
    folder, step = find_checkpoint(workdir)
    settings, _ = read_meta(folder, step)
    return Subject(name, pathlib.Path(workdir), pathlib.Path(folder), step, settings, out)


def measured(name: str, suite: Suite, subject: Subject, options: Options, console: rich.console.Console) -> dict:
    """The values of a suite: what an earlier run has found of the same thing, or measured now and kept."""
    path = subject.out / f"{name}.json"
    asked = {"checkpoint": subject.identity} | {use: getattr(options, use) for use in suite.uses}
    asked = json.loads(json.dumps(asked))
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if bool(multihost_utils.broadcast_one_to_all(np.asarray(kept.get("asked") == asked))):
        console.print(f"{subject.name}: {name}: already measured", highlight=False)
        return kept.get("values", {})
    values = suite.measure(subject, options, console)

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
    """A table for the terminal; numbers with four digits that count, and nothing where there is None."""

    def told(cell):
        return f"{cell:.4g}" if isinstance(cell, float) else "" if cell is None else str(cell)

    table = rich.table.Table(*header)
    for row in rows:
        table.add_row(*map(told, row))
    return table


def side_by_side(results: Mapping[str, dict], key: str) -> list[tuple]:
    """Rows (group, a value of each checkpoint or None) of the tables {group: value} under a key."""
    groups = dict.fromkeys(group for values in results.values() for group in values.get(key, {}))
    return [(group, *(values.get(key, {}).get(group) for values in results.values())) for group in groups]
