"""Settings from and to an ml_collections ConfigDict, plain dicts and JSON."""

import dataclasses
import json
import pathlib
import typing

import ml_collections

from sora_jax.config.old_keys import with_new_keys
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import as_path


def default_config() -> ml_collections.ConfigDict:
    """The defaults, for a file in configs/ to change; setting an unknown key raises."""
    return to_config(Settings())


def to_config(settings: Settings) -> ml_collections.ConfigDict:
    """The same settings as a locked ConfigDict."""
    return ml_collections.ConfigDict(dataclasses.asdict(settings)).lock()


def from_config(config: ml_collections.ConfigDict) -> Settings:
    """Typed settings.

    Raises: InputError, as `from_dict`.
    """
    return from_dict(Settings, config.to_dict(), "config")


def anchored(settings: Settings, folder: pathlib.Path) -> Settings:
    """Settings stored in a workdir, with the relative paths that lead from it to something made absolute.

    Other relative paths, which were given on a command line, stay relative to the current directory.
    """

    def anchor(path: str) -> str:
        inside = folder / path
        return str(inside.resolve()) if path and not as_path(path).is_absolute() and inside.exists() else path

    changes = {
        name: dataclasses.replace(part, weights=anchor(part.weights))
        for name in ("text", "image")
        if (part := getattr(settings, name)).weights
    }
    train = dataclasses.replace(settings.train, init_from=anchor(settings.train.init_from))
    return dataclasses.replace(settings, train=train, **changes)


def with_absolute_paths(settings: Settings) -> Settings:
    """Settings of a run with the paths to other models absolute, so that it can be read from another directory."""
    train = settings.train
    if train.init_from:
        train = dataclasses.replace(train, init_from=str(as_path(train.init_from).absolute()))
    return dataclasses.replace(settings, train=train)


def to_json(settings) -> str:
    return json.dumps(dataclasses.asdict(settings), indent=1)


def from_json(cls, values: dict, where: str):
    """`from_dict` of the content of a settings.json, which may be of an earlier version."""
    return from_dict(cls, with_new_keys(values), where)


def from_dict(cls, values: dict, where: str):
    """A settings dataclass from nested plain values.

    Args:
      where: the place of the values, for errors.
    Raises: InputError for an unknown key (names the nearest), a wrong type or a value out of its range.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    types = typing.get_type_hints(cls)
    made = {}
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"{where}.{key}: no such key, {did_you_mean(key, fields)}")
        made[key] = _typed(types[key], value, f"{where}.{key}")
    return cls(**made)


def _typed(kind, value, where):
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{where}: a group of keys, not {value!r}")
        return from_dict(kind, value, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: a tuple such as (1, 2), not {value!r}")
        of = typing.get_args(kind)
        if of[-1] is not Ellipsis and len(of) != len(value):
            raise InputError(f"{where}: {len(of)} values, not {len(value)}")
        return tuple(_typed(of[0], item, where) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where}: a value of type {kind.__name__}, not {value!r}")
    return value


def parse_size(size: str, where: str) -> tuple[int, int] | int:
    """ "832x480" -> (480, 832), height first; "256" -> 256, the side of a square of as many pixels."""
    parts = size.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"{where}: {size!r} is no size; write WIDTHxHEIGHT (832x480) or one side (256)")
    if len(parts) == 1:
        return int(parts[0])
    return int(parts[1]), int(parts[0])
