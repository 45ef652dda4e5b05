"""A checkpoint's `meta`: settings, hash of the data, and shape, type and checksum of each array."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping

import orbax.checkpoint as ocp

from sora_jax.checkpoint.checksums import checksums, named_leaves
from sora_jax.checkpoint.model_folder import load_settings
from sora_jax.checkpoint.orbax_errors import BrokenCheckpoint, read_with_orbax
from sora_jax.checkpoint.renamed import present_name
from sora_jax.checkpoint.workdir import BROKEN, RELEASED, orbax_path, steps_in
from sora_jax.config.load import anchored, from_json
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError

CONVERTED, OF_RELEASED = "none: converted", "none: released"  # in place of the data's hash
MODELS = ("objective", "autoencoder", "text", "transformer")  # settings that describe the models
EXECUTION = ("dtype", "attention", "remat", "unroll")  # settings of how a model is computed; they may change


@dataclasses.dataclass(frozen=True)
class Meta:
    """The content of a `meta`.

    leaves: by name {"shape", "dtype", "sum"}; empty if a version before checksums wrote it.
    """

    settings: Settings
    data_hash: str
    leaves: Mapping[str, dict]


def make_meta(state, settings: Settings, data_hash: str) -> dict:
    """The `meta` of a state, as JSON holds it."""
    content = {"settings": dataclasses.asdict(settings), "data_hash": data_hash, "leaves": describe(state)}
    return with_hash(content)


def with_hash(content: dict) -> dict:
    """The content, and a hash of it all."""
    text = json.dumps(content, sort_keys=True)
    return content | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def describe(state) -> dict[str, dict]:
    """Shape, type and checksum of each array, by name."""
    sums = checksums(state)
    return {
        name: {"shape": list(x.shape), "dtype": str(x.dtype), "sum": sums[name]}
        for name, x in named_leaves(state).items()
    }


def load_meta(folder: pathlib.Path, step: int) -> Meta:
    """The `meta` of a checkpoint.

    Raises: BrokenCheckpoint; InputError if it can't be read here, or not by this version.
    """
    path, handler = orbax_path(folder / str(step) / "meta"), ocp.JsonCheckpointHandler()
    content = read_with_orbax(lambda: handler.restore(path, args=ocp.args.JsonRestore()), path)
    try:
        expected = content.pop("sha256", None)
        if expected is not None and with_hash(content)["sha256"] != expected:
            raise BrokenCheckpoint("meta is not what was written")
        settings, data_hash, leaves = content["settings"], content["data_hash"], content.get("leaves", {})
        if leaves and expected is None:
            raise BrokenCheckpoint("meta is not what was written")
    except (AttributeError, KeyError, TypeError) as error:
        raise BrokenCheckpoint(f"meta lacks {error}") from error
    leaves = {present_name(name): leaf for name, leaf in leaves.items()}
    return Meta(from_json(Settings, settings, f"{folder}/{step}"), data_hash, leaves)


def read_meta(folder: pathlib.Path, step: int) -> tuple[Settings, str]:
    """The settings that a checkpoint was made with, and the hash of its data. Raises: InputError if broken."""
    if folder.name == RELEASED:
        return anchored(load_settings(folder, Settings), folder.parent), OF_RELEASED
    with explain_broken(folder, step):
        meta = load_meta(folder, step)
    return anchored(meta.settings, folder.parent), meta.data_hash


@contextlib.contextmanager
def explain_broken(folder: pathlib.Path, step: int) -> Iterator[None]:
    """Turn BrokenCheckpoint into an InputError that says what to do, for commands that only read."""
    try:
        yield
    except BrokenCheckpoint as error:
        earlier = [other for other in steps_in(folder) if other < step]
        way = f"rename it to {step}{BROKEN} to take step {earlier[-1]}" if earlier else "there is no earlier one"
        raise InputError(f"{folder}/{step}: is broken, {error}; {way}") from error


def differing(stored: Settings, wanted: Settings, groups: tuple[str, ...] = MODELS) -> Iterator[tuple]:
    """(key, value in stored, value in wanted) of each setting of a model that differs."""
    for group in groups:
        before, now = getattr(stored, group), getattr(wanted, group)
        if group == "objective":
            if before != now:
                yield group, before, now
            continue
        for field in dataclasses.fields(before):
            old, new = getattr(before, field.name), getattr(now, field.name)
            if field.name not in EXECUTION and old != new:
                yield f"{group}.{field.name}", old, new


def check_models(stored: Settings, wanted: Settings, where: str, groups: tuple[str, ...] = MODELS):
    """Raise InputError for the first setting of a model that differs; other settings may."""
    for key, old, new in differing(stored, wanted, groups):
        raise InputError(
            f"{where}: made with config.{key}={old}, now {new}; change it back, or take a new --workdir"
        )


def check_leaves(wanted: Mapping, leaves: Mapping[str, dict], where: str):
    """Raise InputError for the first wanted array that a checkpoint lacks, or has in another shape."""
    for name, x in wanted.items():
        if name not in leaves:
            raise InputError(f"{where}: has no {name}; it was made with other settings, or by another version")
        if tuple(leaves[name]["shape"]) != x.shape:
            stored = tuple(leaves[name]["shape"])
            raise InputError(f"{where}: {name} has shape {stored}, the settings ask for {x.shape}")
