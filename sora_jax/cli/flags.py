"""Flags and commands: each is declared once, for parsing, `--help` and docs/reference/commands.md."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import rich.console
from absl import flags
from absl.flags import FlagValues

from sora_jax.config.load import from_config
from sora_jax.config.schema import MeshSettings, Settings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import as_path


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Args:
      name: as people write it, with hyphens.
      meaning: one sentence.
      kind: str, int, float or bool.
      default: None: no value.
      example: a value of a required flag, for the error if it is absent; "": the flag is not required.
      min, max: bounds of a number, themselves allowed.
      choices: the only values.
      suggestions: values that the shell completes, of a flag that is checked later or takes others, too.
      repeated: given once for each value; the value is a list, or None.
      commas: several values are separated by commas; the value is a list.
      advanced: `--help` leaves it out; `--help-all` has it.
    """

    name: str
    meaning: str
    kind: type = str
    default: Any = None
    example: str = ""
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    repeated: bool = False
    commas: bool = False
    advanced: bool = False

    @property
    def key(self) -> str:
        """The name of its value."""
        return self.name.replace("-", "_")

    @property
    def shown(self) -> str:
        """The default, for people; "" if there is none."""
        return "" if self.default is None or self.default is False else f"{self.default}"

    def define(self, values: FlagValues):
        about = {"name": self.key, "default": self.default, "help": self.meaning, "flag_values": values}
        if self.commas:
            flags.DEFINE_list(**about | {"default": self.default or []})
        elif self.repeated:
            flags.DEFINE_multi_string(**about)
        elif self.choices:
            flags.DEFINE_enum(**about, enum_values=self.choices)
        elif self.kind in (int, float):
            define = flags.DEFINE_integer if self.kind is int else flags.DEFINE_float
            define(**about, lower_bound=self.min, upper_bound=self.max)
        else:
            (flags.DEFINE_boolean if self.kind is bool else flags.DEFINE_string)(**about)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `sora-jax`.

    Args:
      summary: what goes in -> what comes out.
      flags: title of a group -> its flags; the most used first.
      run: does the work, given the values of the flags; imports what it needs itself, so that `--help` and a
        mistyped flag cost no import of JAX.
      about: further sentences for `--help` and the reference.
      examples: command lines, without `sora-jax NAME`.
      config: whether it takes --config and --config.KEY.
      keys: those KEYs that `--help` shows; `--help-all` has the others, too.
      joins: whether it computes together with the other processes of a cluster.
      saves: whether it saves and ends on SIGTERM; other commands are ended by it.
    """

    summary: str
    flags: Mapping[str, tuple[Flag, ...]]
    run: Callable[[FlagValues, rich.console.Console], None]
    about: str = ""
    examples: tuple[str, ...] = ()
    config: bool = False
    keys: tuple[str, ...] = ()
    joins: bool = False
    saves: bool = False

    @property
    def all_flags(self) -> list[Flag]:
        return [flag for group in self.flags.values() for flag in group]

    def define(self, values: FlagValues):
        for flag in self.all_flags:
            flag.define(values)

    def check_required(self, values: FlagValues):
        """Raise InputError if a required flag has no value."""
        for flag in self.all_flags:
            if flag.example and not values[flag.key].value:
                raise missing(flag.name, flag.example)


def missing(name: str, example: str) -> InputError:
    return InputError(f"--{name} is missing, for example --{name}={example}")


WORKDIR = Flag("workdir", "Workdir of a training run.", example="runs/first")
CHECKPOINT = Flag(
    "checkpoint",
    "Workdir of a trained transformer (or one WORKDIR/checkpoints/STEP of it), or a released model; "
    "default: the model of the shapes world.",
)
MODEL = Flag(
    "model",
    "Model of a world, shapes or emoji, or the path of another one, as --checkpoint.",
    suggestions=("shapes", "emoji"),
)
LORA = Flag(
    "lora",
    "Adapter to add, PATH or PATH:STRENGTH; for one of two experts high=PATH or low=PATH; again: another.",
    repeated=True,
)
MESH = Flag(
    "mesh",
    "Axes of the device mesh: data, fsdp, ring, ulysses, tensor, e.g. data=2,ulysses=4; -1: all devices left.",
    default="data=-1",
)
CACHE = Flag(
    "cache", "Folder on this host's disk for copies of what is read from gs:// and s3://; its processes share it."
)
CACHE_GB = Flag("cache-gb", "Size of that folder; what was used longest ago is removed.", float, 200.0, min=0)
NO_COMPILE_CACHE = Flag(
    "no-compile-cache",
    "Compile everything, instead of loading what an earlier command compiled.",
    bool,
    False,
    advanced=True,
)


def use_cpu():
    """Leave the chips to the run that may be using them; to be called before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"


def settings_of(values: FlagValues) -> Settings:
    """The settings that --config and --config.KEY say."""
    return from_config(values["config"].value)


def checkpoint_of(values: FlagValues) -> pathlib.Path:
    """The folder that --checkpoint or --model names, or the model of the package.

    Raises: InputError if both are given, or --model names a world whose model is not there.
    """
    from sora_jax.worlds.shipped import DEFAULT, model_folder

    model = values.model if MODEL.key in values else None
    if values.checkpoint and model:
        raise InputError("--checkpoint and --model: name the model by one of them")
    return as_path(values.checkpoint) if values.checkpoint else model_folder(model or DEFAULT)


def path_of(values: FlagValues, key: str) -> pathlib.Path | None:
    """The path that a flag names, None if it has no value."""
    return as_path(values[key].value) if values[key].value else None


def mesh_of(values: FlagValues) -> MeshSettings:
    """The mesh that --mesh says; an axis that it does not name has one device.

    Raises: InputError for an unknown axis, or a size that is no number.
    """
    sizes = {"data": 1}
    known = [field.name for field in dataclasses.fields(MeshSettings)]
    for part in values.mesh.split(","):
        axis, _, size = part.partition("=")
        if axis not in known:
            raise InputError(f"--mesh: no axis {axis!r}, {did_you_mean(axis, known)}")
        try:
            sizes[axis] = int(size)
        except ValueError:
            raise InputError(f"--mesh: {part!r} is not AXIS=SIZE") from None
    return MeshSettings(**sizes)
