"""Checkpoint tools: inspect, verify and prune the checkpoints of a workdir."""

import datetime
import math
import pathlib
import stat

import rich.console
import rich.table

from sora_jax.checkpoint.kept_steps import read_kept_steps
from sora_jax.checkpoint.meta import load_meta
from sora_jax.checkpoint.orbax_errors import BrokenCheckpoint
from sora_jax.checkpoint.restore import verify_step
from sora_jax.checkpoint.workdir import BROKEN, COMMIT, find_steps
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import explain_os_errors, in_bucket, move_folder, remove_folder

DELETED = ".deleted"  # suffix of a folder that is being deleted


def inspect(workdir: pathlib.Path, console: rich.console.Console):
    """Print the steps of a workdir with their sizes, and the settings of the newest."""
    folder, steps = find_steps(workdir)
    table = rich.table.Table("step", "MB", "written", "parameters", "data", box=None, pad_edge=False)
    newest = None
    for step in steps:
        try:
            newest = load_meta(folder, step)
            content = [f"{count_params(newest.leaves):,}", newest.data_hash]
        except BrokenCheckpoint as error:
            content = ["", f"broken: {error}"]
        table.add_row(str(step), *size_and_time(folder / str(step)), *content)
    for path in sorted(folder.glob(f"*{BROKEN}*")):
        table.add_row(path.name, *size_and_time(path), "", "set aside")
    console.print(table)
    if newest is None:
        raise InputError(f"{folder}: no step in it can be used")
    for line in summary(newest.settings):
        console.print(line, highlight=False, soft_wrap=True)


def count_params(leaves) -> int:
    """The number of averaged parameters, which every checkpoint has."""
    return sum(math.prod(leaf["shape"]) for name, leaf in leaves.items() if name.startswith("ema."))


def size_and_time(path: pathlib.Path) -> tuple[str, str]:
    """(size of a folder in MB, time of its last change)."""
    if in_bucket(path):  # a folder there has no time of its own
        found = path.statuses()
    else:
        found = [file.stat() for file in path.rglob("*") if file.is_file()] + [path.stat()]
    size = sum(status.st_size for status in found if not stat.S_ISDIR(status.st_mode))
    when = datetime.datetime.fromtimestamp(max((status.st_mtime for status in found), default=0))
    return f"{size / 1e6:,.1f}", f"{when:%Y-%m-%d %H:%M}"


def summary(settings: Settings) -> list[str]:
    """The main settings of a run, one line each."""
    model, optimizer, train = settings.transformer, settings.optimizer, settings.train
    lines = [f"objective: {settings.objective}", f"data: {settings.data.path}, {settings.data.batch} rows a step"]
    if settings.objective != "autoencoder":
        shape = f"width {model.width}, {model.layers} layers, {model.heads} heads"
        lines.append(f"transformer: {shape}, patch {'x'.join(map(str, model.patch))}, {model.dtype}")
    coder = settings.autoencoder
    strides = f"strides {coder.temporal_stride}x{coder.spatial_stride}x{coder.spatial_stride}"
    lines.append(f"autoencoder: width {coder.width}, {coder.latent_channels} channels, {strides}")
    if settings.lora.rank:
        lines.append(f"adapters: rank {settings.lora.rank} of {train.init_from}")
    rate = f"learning rate {optimizer.learning_rate:g}, {optimizer.schedule}"
    lines.append(f"optimizer: {optimizer.name}, {rate}, average {optimizer.ema_decay:g}")
    lines.append(f"seed: {train.seed}; {train.steps} steps, saved every {train.save_every}")
    return lines


def verify(workdir: pathlib.Path, console: rich.console.Console):
    """Read all steps of a workdir and verify their checksums.

    Raises: InputError that names the first broken array of each step.
    """
    folder, steps = find_steps(workdir)
    broken = []
    for step in steps:
        try:
            console.print(
                f"{folder}/{step}: {verify_step(folder, step)} arrays are whole", highlight=False, soft_wrap=True
            )
        except BrokenCheckpoint as error:
            broken.append(f"{folder}/{step}: is broken, {error}")
    if broken:
        raise InputError("; ".join(broken))


def delete_step(path: pathlib.Path):
    """Delete a step's folder, in such an order that it never looks complete while half of it is gone."""
    if not in_bucket(path):
        whole, path = path, path.with_name(path.name.removesuffix(DELETED) + DELETED)
        move_folder(whole, path)
    remove_folder(path, mark=COMMIT)


def prune(workdir: pathlib.Path, keep: int, keep_every: int, *, dry_run: bool, console: rich.console.Console):
    """Delete all steps but the last `keep`, the multiples of `keep_every` (0: none), and those asked for.

    Those that were set aside are deleted as well.

    Raises: InputError if a folder can't be deleted.
    """
    folder, steps = find_steps(workdir)
    asked = {step for steps in read_kept_steps(workdir).values() for step in steps}
    stays = {
        *steps[-keep:],
        *(set(steps) & asked),
        *(step for step in steps if keep_every and step % keep_every == 0),
    }
    gone = [folder / str(step) for step in steps if step not in stays]
    for path in (*gone, *sorted(folder.glob(f"*{BROKEN}*")), *folder.glob(f"*{DELETED}")):
        size, _ = size_and_time(path)
        if not dry_run:
            with explain_os_errors(path):
                delete_step(path)
        console.print(
            f"{path}: {'would be deleted' if dry_run else 'deleted'}, {size} MB", highlight=False, soft_wrap=True
        )
    kept = ", ".join(map(str, sorted(stays)))
    console.print(f"{folder}: {kept} {'would be' if dry_run else 'are'} kept", highlight=False, soft_wrap=True)
