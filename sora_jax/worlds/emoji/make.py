"""From nothing to the captioned videos of the emoji world."""

import pathlib
from collections.abc import Sequence

import rich.console

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.progress import progress_bar
from sora_jax.worlds.emoji import ANIMATIONS
from sora_jax.worlds.emoji.animations import unpack
from sora_jax.worlds.emoji.fetch import PACKAGES, fetch
from sora_jax.worlds.emoji.subjects import all_emoji
from sora_jax.worlds.emoji.videos import SETS, write_set

FILES = 3391  # in the packages, stills among them


def make_data(
    out: pathlib.Path, sets: Sequence[str], files: pathlib.Path | None, console: rich.console.Console
) -> None:
    """Write animations and sets of videos into a folder; what is there is kept.

    Args:
      out: the animations are in its folder ANIMATIONS, each set in videos/NAME.
      sets: names of SETS; (): all.
      files: folder that has the packages or their WebP files; None: the packages are downloaded into `out`.
    Raises: InputError if the files can't be had, or there is no such set.
    """
    for name in sets:
        if name not in SETS:
            raise InputError(f"--sets: no set {name!r}, {did_you_mean(name, SETS)}")
    if files and not files.is_dir():
        raise InputError(f"--files={files}: no such folder; name the one with the packages (.tgz) or WebP files")
    animations = out / ANIMATIONS
    with progress_bar(console) as bar:
        if files or not all((animations / f"{code}.npy").exists() for code in all_emoji()):
            source = files or out / "packages"
            if files is None:
                total = sum(size for size, _ in PACKAGES.values())
                task = bar.add_task("download", total=total, numbers="")
                fetch(source, progress=lambda done, of: bar.update(task, completed=done))
            task = bar.add_task("animations", total=FILES, numbers="")
            unpack(source, animations, progress=lambda done: bar.update(task, completed=done))
        for name in sets or SETS:
            write_set(name, animations, out / "videos" / name, progress=_shown(bar, f"videos of {name}"))
    console.print(f"{out}: {', '.join(sets or SETS)}", highlight=False)


def _shown(bar, title):
    """A new task of the bar, as a function of the numbers that are done and of all."""
    task = bar.add_task(title, total=1, numbers="")
    return lambda done, of: bar.update(task, completed=done, total=of)
