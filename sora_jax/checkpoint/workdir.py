"""Where a workdir keeps its checkpoints, and which of them are complete.

`checkpoints/<step>/` holds one checkpoint. A broken one is set aside as `<step>.broken`, where nothing reads it.
A released model (see sora_jax.checkpoint.release) has `model/` in place of `checkpoints/`.
"""

import pathlib

from etils import epath

from sora_jax import compat
from sora_jax.checkpoint.model_folder import WEIGHTS, open_tensors
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import as_path, in_bucket

CHECKPOINTS = "checkpoints"
RELEASED = "model"  # the folder of a released model's weights
STEP = "step"  # in the metadata of these weights: updates done
COMMIT = "commit_success.txt"  # in a bucket: the last file of a step, without which it is no step
BROKEN = ".broken"  # suffix of a checkpoint that is known to be broken


def split_step(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """(workdir, step) of a path WORKDIR/checkpoints/STEP; (path, None) of any other."""
    path = as_path(path)
    if path.name.isdecimal() and path.parent.name == CHECKPOINTS:
        return path.parent.parent, int(path.name)
    return path, None


def find_checkpoint(path: pathlib.Path) -> tuple[pathlib.Path, int]:
    """(the folder of checkpoints, a complete step), or (the folder of a released model, its step).

    Args:
      path: of a workdir, whose newest step is taken, of one of its checkpoints, or of a released model.
    Raises: InputError if there is none.
    """
    workdir, step = split_step(path)
    released = as_path(workdir).resolve() / RELEASED
    if not (released.parent / CHECKPOINTS).is_dir() and (released / WEIGHTS).is_file():
        with open_tensors(released / WEIGHTS) as file:
            return released, int((file.metadata() or {}).get(STEP, 0))
    folder, steps = find_steps(workdir)
    if step is not None and step not in steps:
        there = ", ".join(map(str, steps))
        raise InputError(f"{workdir}: no complete checkpoint of step {step}; there are {there}")
    return folder, steps[-1] if step is None else step


def find_steps(workdir: pathlib.Path) -> tuple[pathlib.Path, list[int]]:
    """The folder of checkpoints of a workdir, and its complete steps. Raises: InputError if there is none."""
    run, step = split_step(workdir)
    if step is not None:
        raise InputError(f"{workdir}: is one checkpoint; name its run, {run}")
    folder = as_path(workdir).resolve() / CHECKPOINTS
    if not folder.parent.is_dir():
        parent = folder.parent.parent
        there = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
        hint = "--checkpoint takes the --workdir of a training run"
        raise InputError(
            f"{workdir}: no such folder, {did_you_mean(folder.parent.name, there) if there else hint}"
        )
    if not (steps := steps_in(folder)):
        raise InputError(f"{workdir}: no checkpoint in it; run `sora-jax train --workdir={workdir}` first")
    return folder, steps


def steps_in(folder: pathlib.Path) -> list[int]:
    """The complete steps in a folder of checkpoints, in order, without those that were set aside."""
    steps = [path for path in folder.glob("*") if path.name.isdigit()]
    return sorted(int(path.name) for path in steps if not in_bucket(path) or (path / COMMIT).exists())


def written_at(folder: pathlib.Path, step: int) -> int:
    """When a step was written, in nanoseconds since 1970."""
    path = folder / str(step)
    return (path / COMMIT if in_bucket(path) else path).stat().st_mtime_ns


def orbax_path(path: pathlib.Path):
    """The path as Orbax takes it."""
    if not in_bucket(path):
        return path
    if path.scheme == "s3":
        compat.let_orbax_use_s3()
    return epath.Path(str(path))


def has_checkpoint(workdir: pathlib.Path) -> bool:
    return bool(steps_in(workdir / CHECKPOINTS))
