"""The benchmark `vbench`: samples named as VBench's own tool reads them, and its dimensions measured here.

Source: Huang et al. 2023 (arXiv 2311.17982); prompts/README.md of its repository.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from sora_jax.core.errors import InputError
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import as_path, atomic_write, content_hash, digest, weights_digest
from sora_jax.evaluate.benchmark import Benchmark, Options, Sample, Subject, terminal_table
from sora_jax.evaluate.samples import cells, make_missing
from sora_jax.evaluate.vbench.dimensions import (
    DIMENSIONS,
    STATIC,
    Dimension,
    DimensionMeasure,
    chosen_dimensions,
    frames_mesh,
    mean,
    missing_weights,
    quality_score,
)
from sora_jax.evaluate.videos_under_test import VideosUnderTest
from sora_jax.report.page import Section, Table

SAMPLES = 5  # of each prompt; VBench's dimension temporal_flickering needs 25
FLICKERING = "temporal_flickering"
MAX_NAME = 255  # bytes of a file name


def names_of(prompts, count: int) -> list[tuple[str, str]]:
    """(prompt, file name) of each sample, PROMPT-INDEX.mp4; repeated prompts count once.

    Raises: InputError for a prompt that can't be a file name.
    """
    for number, prompt in enumerate(prompts, 1):
        if "/" in prompt or len(f"{prompt}-{count}.mp4".encode()) > MAX_NAME:
            raise InputError(f"--prompts: {prompt[:60]!r} (number {number}) can't be a file name, as VBench needs")
    return [(prompt, f"{prompt}-{n}.mp4") for prompt in dict.fromkeys(prompts) for n in range(count)]


def measure_videos(
    videos: Sequence[tuple[str, pathlib.Path]],
    weights: str,
    dimensions: Sequence[Dimension],
    kept: pathlib.Path,
    console,
) -> dict:
    """VBench's dimensions of videos; with the static filter, flickering is the mean of the videos that it keeps.

    Args:
      videos: (prompt, file) of each.
      weights: the folder of the networks' folders.
      kept: folder in which the values of each dimension are kept; they are not measured again.
    Returns: {"dimensions": {name: mean}, "videos": {file name: {dimension: value}}, "absent": {dimension: how to
      get its weights}}.
    """
    found: dict = {"dimensions": {}, "videos": {path.name: {} for _, path in videos}, "absent": {}}
    with jax.set_mesh(frames_mesh()):
        for dimension in dimensions:
            if absent := missing_weights(dimension, weights):
                found["absent"][dimension.name] = absent
                continue
            values = _measured(dimension, videos, weights, kept, console)
            for (_, path), value in zip(videos, values, strict=True):
                found["videos"][path.name][dimension.name] = value
            found["dimensions"][dimension.name] = mean(values)
    if {STATIC, FLICKERING} <= set(found["dimensions"]):
        static = [values[FLICKERING] for values in found["videos"].values() if values[STATIC]]
        found["dimensions"][FLICKERING] = mean(static)
    return found


def _measured(dimension, videos, weights, kept, console) -> list[float | None]:
    """The values of a dimension, kept or new; the processes share the videos if all of them see the files."""
    me, processes = jax.process_index(), jax.process_count()
    seen = multihost_utils.process_allgather(np.asarray(all(path.is_file() for _, path in videos)))
    mine = range(me, len(videos), processes) if np.all(seen) else range(0, len(videos) if me == 0 else 0)
    about: list = [weights_digest(as_path(weights) / name) for name in dimension.networks]
    about += [[prompt, content_hash(path)] for prompt, path in (videos[n] for n in mine)]
    path = kept / f"vbench-{dimension.name}-{digest(about)}.json"
    if path.is_file():
        values = json.loads(path.read_text())
    else:
        network = DimensionMeasure(dimension, weights)
        with progress_bar(console) as bar:
            task = bar.add_task(f"VBench: {dimension.name}", total=len(mine), numbers="")
            values = [network.measure(videos[n][1], videos[n][0]) for n in bar.track(mine, task_id=task)]
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(values))
    table = np.full(len(videos), np.nan)
    table[list(mine)] = [np.nan if value is None else value for value in values]
    of_all = np.atleast_2d(multihost_utils.process_allgather(table))
    there = ~np.all(np.isnan(of_all), axis=0)
    return [float(np.nansum(column)) if known else None for column, known in zip(of_all.T, there, strict=True)]


def _check(checkpoint: Subject, options: Options):
    if isinstance(checkpoint, VideosUnderTest):
        if not options.vbench:
            raise InputError("--suite=vbench: of videos made elsewhere it needs --vbench, a folder of weights")
    else:
        if not options.prompts:
            raise InputError("--suite=vbench: --prompts is missing, VBench's own file, prompts/all_dimension.txt")
        names_of(options.prompts, options.samples or SAMPLES)
        if len(cells(checkpoint, options)) > 1:
            raise InputError("--suite=vbench: takes one size and one length; see --size and --frames")
    if options.vbench and not as_path(options.vbench).is_dir():
        raise InputError(
            f"--vbench={options.vbench}: no such folder; docs/guide/vbench.md says what belongs into it"
        )
    for dimension in chosen_dimensions(options.dimensions):
        absent = missing_weights(dimension, options.vbench)
        if dimension.name in options.dimensions and absent:
            raise InputError(f"--dimensions: {dimension.name} needs weights in --vbench: {absent}")


def _measure(checkpoint: Subject, options: Options, console) -> dict:
    if isinstance(checkpoint, VideosUnderTest):
        folder = checkpoint.folder
        videos = [(prompt, folder / name) for name, prompt in checkpoint.prompts.items()]
    else:
        (cell,) = cells(checkpoint, options)
        named = names_of(options.prompts, options.samples or SAMPLES)
        settings = digest(dataclasses.asdict(cell))[:8]  # of samples
        folder = checkpoint.out / f"vbench-{cell.size}-{cell.frames}-{settings}-{options.seed}"
        videos = [(prompt, folder / name) for prompt, name in named]
        make_missing(
            checkpoint, options, [prompt for prompt, _ in videos], [path for _, path in videos], cell, console
        )
    values = {"folder": str(folder), "prompts": len({prompt for prompt, _ in videos}), "videos": len(videos)}
    values["each"] = [
        {"prompt": prompt, "file": path.name, "video": os.path.relpath(path, checkpoint.out)}
        for prompt, path in videos
    ]
    if not options.vbench:
        return values
    found = measure_videos(videos, options.vbench, chosen_dimensions(options.dimensions), checkpoint.out, console)
    score, missing = quality_score(found["dimensions"])
    rows = [
        (name, value, None if value is None else DIMENSIONS[name].normalised(value))
        for name, value in found["dimensions"].items()
    ]
    console.print(terminal_table(("dimension", "value", "normalised"), rows))
    for name, absent in found["absent"].items():
        console.print(f"{name} is left out; its weights: {absent}", highlight=False, soft_wrap=True)
    console.print(f"{checkpoint.name}: {_quality_words(score, missing)}", highlight=False, soft_wrap=True)
    return values | {"measured": found, "quality": score, "missing": missing}


def _quality_words(score, missing):
    if score is None:
        return "no quality score: none of its dimensions was measured"
    words = f"VBench quality score {100 * score:.2f} %"
    return f"{words} without {', '.join(missing)}: not comparable with published ones" if missing else words


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    measured = {name: values for name, values in results.items() if "measured" in values}
    parts, notes = [], []
    if measured:
        rows: list[tuple] = [
            (name, *(values["measured"]["dimensions"].get(name) for values in measured.values()))
            for name in DIMENSIONS
            if any(name in values["measured"]["dimensions"] for values in measured.values())
        ]
        rows.append(("quality score", *(values["quality"] for values in measured.values())))
        parts.append(Table(("dimension", *measured), rows))
        notes = [f"{name}: {_quality_words(v['quality'], v['missing'])}." for name, v in measured.items()]
        absent = {k: how for values in measured.values() for k, how in values["measured"]["absent"].items()}
        if absent:
            parts.append(Table(("left out", "its weights"), list(absent.items())))
    commands = [
        (name, v["prompts"], v["videos"], f"vbench evaluate --videos_path {v['folder']}")
        for name, v in results.items()
    ]
    parts.append(Table(("checkpoint", "prompts", "videos", "command"), commands, "For VBench's own tool."))
    return [Section("VBench", " ".join(notes), parts)]


def _samples(values: dict) -> list[Sample]:
    seen: collections.Counter = collections.Counter()
    made = []
    for one in values["each"] if "measured" in values else ():
        found = {k: v for k, v in values["measured"]["videos"][one["file"]].items() if v is not None}
        prompt = one["prompt"]
        made.append(Sample(f"{prompt} #{seen[prompt]}", found, prompt, video=one["video"], prompt=prompt))
        seen[prompt] += 1
    return made


def _figures(values: dict) -> dict[str, float]:
    return {"quality score": values["quality"]} if values.get("quality") is not None else {}


VBENCH = Benchmark(
    ("flow", "videos"),
    ("samples", "prompts", "sizes", "frames", "seed", "vbench", "dimensions"),
    _measure,
    _show,
    _check,
    samples=_samples,
    figures=_figures,
    better=dict.fromkeys((*DIMENSIONS, "quality score"), "higher"),
)
