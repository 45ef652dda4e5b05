"""The sets of videos that the models of the shapes world learn from, and their rendering on all cores."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import rich.console

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.progress import progress_bar
from sora_jax.worlds.shapes.renderer import World, write_world

# What is learned last is drawn most: two objects, opposite directions, and the colours nearest to each other.
_KINDS: dict[str, dict[str, Any]] = {
    "one": {"things": 1},
    "two": {"things": 2},
    "across": {"things": 2, "motions": ("left", "right")},
    "along": {"things": 2, "motions": ("up", "down")},
    "warm": {"things": 2, "colours": ("red", "orange", "yellow")},
}


@dataclasses.dataclass(frozen=True)
class VideoSet:
    """Folders of one set: name -> (number of videos, their world)."""

    parts: dict[str, tuple[int, World]]


def _set(seed: int, counts: dict[str, int], **options) -> VideoSet:
    worlds = {kind: World(seed=seed + i, **_KINDS[kind], **options) for i, kind in enumerate(counts)}
    return VideoSet({kind: (counts[kind], world) for kind, world in worlds.items()})


SETS = {
    # A quarter are pictures: the tokenizer is learned from these captions as well.
    "autoencoder": VideoSet({"any": (5_000, World(seed=100, lengths=(17, 17, 17, 1)))}),
    "pictures": _set(110, {"one": 16_000, "two": 24_000, "warm": 12_000}, lengths=(1,)),
    "short": _set(
        120, {"one": 6_000, "two": 10_000, "across": 6_000, "along": 6_000, "warm": 5_000}, lengths=(5,)
    ),
    "clips": _set(130, {"one": 8_000, "two": 6_000, "across": 4_000, "along": 4_000, "warm": 4_000}),
    "aspects": VideoSet({"any": (2_400, World(seed=140, sizes=("96x64", "64x96")))}),
    "long": VideoSet({"any": (1_000, World(seed=150, lengths=(33,)))}),
    "refiner": VideoSet({"any": (4_000, World(seed=160, sizes=("128x128",)))}),
}
LEAST = 8  # videos of a part


def make_sets(out: pathlib.Path, names: Sequence[str], share: float, console: rich.console.Console) -> None:
    """Render sets into `out`/NAME; videos that are there are kept.

    Args:
      names: of SETS; (): all.
      share: of each set's videos.
    Raises: InputError for a name that no set has, or a folder that holds another set.
    """
    for name in names:
        if name not in SETS:
            raise InputError(f"--sets: no set {name!r}, {did_you_mean(name, SETS)}")
    jobs = [
        (out / name / part, max(LEAST, round(share * count)), world)
        for name in names or SETS
        for part, (count, world) in SETS[name].parts.items()
    ]
    # Spawned: a copy of a process that has threads can hang.
    context = multiprocessing.get_context("spawn")
    workers = min(len(jobs), os.cpu_count() or 1)
    with (
        progress_bar(console) as bar,
        concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool,
    ):
        task = bar.add_task("videos", total=sum(count for _, count, _ in jobs), numbers="")
        running = {pool.submit(functools.partial(write_world, *job)): job for job in jobs}
        for future in concurrent.futures.as_completed(running):
            future.result()
            bar.advance(task, running[future][1])
    console.print(f"{out}: {', '.join(names or SETS)}")
