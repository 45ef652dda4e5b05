"""The verbs of checkpoints: see sora_jax.cli.commands."""

import os
import pathlib

from absl import flags

from sora_jax.cli.commands import needed


def define(values):
    flags.DEFINE_string("workdir", None, "Workdir of a training run.", flag_values=values)


def workdir_of(values) -> pathlib.Path:
    return pathlib.Path(needed(values, "workdir", "runs/first"))


def on_cpu():
    """The chips may be at work for the very run that is looked at."""
    os.environ["JAX_PLATFORMS"] = "cpu"


def run_inspect(values, console):
    on_cpu()
    from sora_jax.checkpoint.tools import inspect

    inspect(workdir_of(values), console)


def run_verify(values, console):
    on_cpu()
    from sora_jax.checkpoint.tools import verify

    verify(workdir_of(values), console)


def define_release(values):
    text = "Workdir of a training run; again: another, and the mean of their weights is written."
    flags.DEFINE_multi_string("workdir", None, text, flag_values=values)
    flags.DEFINE_string("out", None, "Folder for the model.", flag_values=values)
    flags.DEFINE_enum("dtype", "bfloat16", ("bfloat16", "float32"), "Of the weights.", flag_values=values)


def run_release(values, console):
    on_cpu()
    import jax

    from sora_jax.checkpoint.release import release
    from sora_jax.config.schema import MeshSettings
    from sora_jax.core.mesh import make_mesh

    out = pathlib.Path(needed(values, "out", "released"))
    workdirs = [pathlib.Path(name) for name in needed(values, "workdir", "runs/first")]
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        release(workdirs, out, dtype=values["dtype"].value, console=console)


def define_prune(values):
    define(values)
    flags.DEFINE_integer("keep", 3, "The last so many stay.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "keep_every", 0, "So do the multiples of so many; 0: none.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_boolean("dry_run", False, "Only say what would go.", flag_values=values)


def run_prune(values, console):
    on_cpu()
    from sora_jax.checkpoint.tools import prune

    keep, keep_every, dry_run = (values[name].value for name in ("keep", "keep_every", "dry_run"))
    prune(workdir_of(values), keep, keep_every, dry_run=dry_run, console=console)
