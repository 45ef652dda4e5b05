"""Checkpoints: what they hold, and how it is read and found to be whole.

A workdir's `checkpoints/<step>/` holds `state` (a TrainState) and `meta` (JSON: the settings, the hash of the
data, and of each leaf of the state its shape, its type and its checksum). Nothing is used that is not what was
written. A step that is not whole is set aside as `<step>.broken`, where nothing looks for it.

A folder with a released model (see sora_jax.checkpoint.release) is read in the place of a workdir by whatever
needs
no more than the weights.
"""

import asyncio
import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util

from sora_jax.checkpoint.checksums import checksums, leaf_name, named_leaves
from sora_jax.checkpoint.model_folder import WEIGHTS, load_model, load_settings, open_tensors
from sora_jax.config.load import from_json
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import USER_ERRORS
from sora_jax.models.video_model import VideoModel, abstract_trained

FOLDER = "checkpoints"
RELEASED, STEP = "model", "step"  # in the place of the checkpoints, and what its weights tell of themselves
BROKEN = ".broken"  # in the place of nothing after the step, once it is known to be
CONVERTED, OF_RELEASED = "none: converted", "none: released"  # in the place of the data's hash
FREE = (
    "dtype",
    "attention",
    "remat",
    "unroll",
)  # settings of a model that change how it is computed, not what it is
GROUP = 2**31  # bytes of leaves read at a time where they are then cast: what is held twice
# Why a read can fail though the files are whole; the system's number, or TensorStore's word.
UNREADABLE = {
    errno.EACCES: "no permission to read it",
    errno.EPERM: "no permission to read it",
    errno.ENOTCONN: "the disk is not reachable",
    errno.ESTALE: "the disk is not reachable",
    errno.ETIMEDOUT: "the disk is not reachable",
    errno.EMFILE: "too many files are open (ulimit -n)",
    errno.ENOMEM: "there is no memory left",
    "PERMISSION_DENIED": "no permission to read it",
    "UNAUTHENTICATED": "no permission to read it",
    "UNAVAILABLE": "the disk is not reachable",
    "DEADLINE_EXCEEDED": "the disk is not reachable",
}


class Broken(Exception):
    """A checkpoint that is not what was written: which file or leaf, and how."""


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself.

    leaves: by name {"shape", "dtype", "sum"}; empty if a version before checksums wrote it.
    """

    settings: Settings
    data_hash: str
    leaves: Mapping[str, dict]


def find_checkpoint(workdir: pathlib.Path) -> tuple[pathlib.Path, int]:
    """The folder of checkpoints of a workdir, and the newest complete step in it; or of a released model.

    Raises: InputError if there is none.
    """
    released = pathlib.Path(workdir).resolve() / RELEASED
    if not (released.parent / FOLDER).is_dir() and (released / WEIGHTS).is_file():
        with open_tensors(released / WEIGHTS) as file:
            return released, int((file.metadata() or {}).get(STEP, 0))
    folder, steps = find_steps(workdir)
    return folder, steps[-1]


def find_steps(workdir: pathlib.Path) -> tuple[pathlib.Path, list[int]]:
    """The folder of checkpoints of a workdir, and its complete steps. Raises: InputError if there is none."""
    folder = pathlib.Path(workdir).resolve() / FOLDER
    if not folder.parent.is_dir():
        near = folder.parent.parent
        there = [path.name for path in near.iterdir() if path.is_dir()] if near.is_dir() else []
        hint = (
            did_you_mean(folder.parent.name, there)
            if there
            else "--checkpoint takes the --workdir of a training run"
        )
        raise InputError(f"{workdir}: no such folder, {hint}")
    if not (steps := steps_in(folder)):
        raise InputError(f"{workdir}: no checkpoint in it; run `sora-jax train --workdir={workdir}` first")
    return folder, steps


def steps_in(folder: pathlib.Path) -> list[int]:
    """The complete steps, in order; those set aside are not among them."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def sealed(content: dict) -> dict:
    """The content of a `meta`, with a hash of it all."""
    text = json.dumps(content, sort_keys=True)
    return content | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def describe(state) -> dict[str, dict]:
    """Shape, type and checksum of each leaf, by name, as `meta` holds them."""
    sums = checksums(state)
    return {
        name: {"shape": list(x.shape), "dtype": str(x.dtype), "sum": sums[name]}
        for name, x in named_leaves(state).items()
    }


def load_meta(folder: pathlib.Path, step: int) -> Meta:
    """What a checkpoint says of itself.

    Raises: Broken; InputError if it can't be read here, or not by this version.
    """
    content = _read(ocp.JsonCheckpointHandler(), folder / str(step) / "meta", ocp.args.JsonRestore())
    try:
        known = content.pop("sha256", None)
        if known is not None and sealed(content)["sha256"] != known:
            raise Broken("meta is not what was written")
        settings, data_hash, leaves = content["settings"], content["data_hash"], content.get("leaves", {})
        if leaves and known is None:
            raise Broken("meta is not what was written")
    except (AttributeError, KeyError, TypeError) as error:
        raise Broken(f"meta lacks {error}") from error
    return Meta(from_json(Settings, settings, f"{folder}/{step}"), data_hash, leaves)


def read_meta(folder: pathlib.Path, step: int) -> tuple[Settings, str]:
    """The settings that a checkpoint was made with, and the hash of its data.

    Raises: InputError if it is broken.
    """
    if folder.name == RELEASED:
        return load_settings(folder, Settings), OF_RELEASED
    with told_broken(folder, step):
        meta = load_meta(folder, step)
    return meta.settings, meta.data_hash


def read_state(folder: pathlib.Path, step: int, abstract):
    """The tree of a checkpoint's arrays that `abstract` asks for, not yet verified: see `verify`.

    Args:
      abstract: a TrainState of shapes with shardings, or a part of it as nested dicts.
    Raises: Broken; InputError if it can't be read here.
    """
    args = ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )
    return _read(ocp.PyTreeCheckpointHandler(), folder / str(step) / "state", args)


def verify(state, leaves: Mapping[str, dict]):
    """Raise Broken, in every process, if a leaf is not what was written; all must call it."""
    wrong = [name for name, found in checksums(state).items() if leaves and leaves[name]["sum"] != found]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise Broken(f"{wrong[0]}{more}: the checksum differs")


def verify_step(folder: pathlib.Path, step: int) -> int:
    """Read and check all of a checkpoint, a few leaves at a time, on the first device; returns how many they are.

    Raises: Broken; InputError if it can't be read here, or has no checksums.
    """
    leaves = load_meta(folder, step).leaves
    if not leaves:
        raise InputError(f"{folder}/{step}: has no checksums, an early version wrote it")
    path, handler = folder / str(step) / "state", ocp.PyTreeCheckpointHandler()
    stored = _orbax(lambda: handler.metadata(path), path).tree
    if missing := leaves.keys() - named_leaves(stored).keys():
        raise Broken(f"{min(missing)} is not there")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    types = {
        name: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"], sharding=sharding)
        for name, leaf in leaves.items()
    }
    for group in in_groups(types):
        item = jax.tree.map_with_path(
            lambda path, _, group=group: group.get(leaf_name(path), ocp.PLACEHOLDER), stored
        )
        restore_args = jax.tree.map(
            lambda x: ocp.RestoreArgs() if x is ocp.PLACEHOLDER else ocp.ArrayRestoreArgs(sharding=sharding), item
        )
        read = _read(handler, path, ocp.args.PyTreeRestore(item=item, restore_args=restore_args))
        verify({name: x for name, x in named_leaves(read).items() if name in group}, leaves)
    return len(leaves)


def _read(handler, path: pathlib.Path, args):
    """What a handler of Orbax's restores; it waits for no other process, so that each can fail alone."""
    return _orbax(lambda: handler.restore(path, args=args), path)


def _orbax(work: Callable, path: pathlib.Path):
    """What Orbax reads. Raises: Broken; InputError if the path can't be read here."""
    policy = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(PatientPolicy())
    try:
        return work()
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise  # of the chips, not of the files
    except Exception as error:  # Orbax raises just this, and what its parsers and TensorStore raise: all kinds
        if reason := unreadable(error):
            raise InputError(f"{path}: can't be read, {reason}") from error
        raise Broken(what_broke(error, path.name)) from error
    finally:
        asyncio.set_event_loop_policy(policy)


class PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that ends after all that it began.

    Orbax reads all leaves at once, and closes its loop at the first error: each of the other reads would then tell
    that it found no loop, with a traceback.
    """

    def close(self):
        while not self.is_closed() and (left := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        super().close()


class PatientPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self):
        return PatientLoop()


def unreadable(error: Exception) -> str | None:
    """Why a read failed, if that says nothing of the files."""
    if isinstance(error, OSError):
        return UNREADABLE.get(error.errno)
    text = f"{error} {error.__cause__}"
    if code := re.search(r"os_error_code='(\d+)'", text):
        return UNREADABLE.get(int(code[1]))
    return next((why for word, why in UNREADABLE.items() if isinstance(word, str) and f"{word}:" in text), None)


def what_broke(error: Exception, name: str) -> str:
    """The leaf that can't be read, or the file `name`, and why, from what Orbax and TensorStore raise."""
    text = f"{error} {error.__cause__ or ''}"
    leaf = re.search(r"""['"]([\w.]+)/(?:\.zarray)?['"]""", text)
    status = re.search(r"\b(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|INVALID_ARGUMENT|FAILED_PRECONDITION)\b", text)
    why = status[0].lower().replace("_", " ") if status else f"{type(error).__name__}: {str(error).strip()[:100]}"
    return f"{leaf[1] if leaf else name} can't be read, {why.splitlines()[0]}"


def reason_of(error: OSError | ValueError) -> str:
    """Why a write failed; TensorStore tells the system's reason only in the text of a ValueError."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(code[1]) if code else getattr(error, "errno", None)
    return USER_ERRORS.get(number) or str(error).splitlines()[0][:300]


@contextlib.contextmanager
def told_broken(folder: pathlib.Path, step: int) -> Iterator[None]:
    """Tell a reader, who changes nothing, that a checkpoint is broken, and what can be done."""
    try:
        yield
    except Broken as error:
        earlier = [other for other in steps_in(folder) if other < step]
        way = f"rename it to {step}{BROKEN} to take step {earlier[-1]}" if earlier else "there is no earlier one"
        raise InputError(f"{folder}/{step}: is broken, {error}; {way}") from error


def restore_ema(folder: pathlib.Path, step: int, abstract_params: dict) -> dict:
    """The averaged parameters alone, in the shardings and types of `abstract_params`.

    Raises: InputError if they are not what was written, or are others than those asked for.
    """
    if folder.name == RELEASED:
        _, params = load_model(folder, VideoModel, Settings)
        return jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), params, abstract_params)
    wanted = traverse_util.flatten_dict({"ema": abstract_params})
    found = {}
    with told_broken(folder, step):
        leaves = load_meta(folder, step).leaves
        # As they are stored, or their checksums say nothing.
        stored = {
            path: jax.ShapeDtypeStruct(x.shape, _stored_type(leaves, _name(path), x), sharding=x.sharding)
            for path, x in wanted.items()
        }
        if leaves:
            check_leaves({_name(path): x for path, x in stored.items()}, leaves, f"{folder}/{step}")
        for group in in_groups(stored):
            part = read_state(folder, step, traverse_util.unflatten_dict(group))
            verify(part, leaves)
            for path, x in traverse_util.flatten_dict(part).items():
                found[path] = x.astype(wanted[path].dtype)
    return traverse_util.unflatten_dict(found)["ema"]


def _name(path) -> str:
    """As `integrity.named_leaves` has it; of a list's items the keys are numbers."""
    return ".".join(map(str, path))


def _stored_type(leaves, name, x):
    return jnp.dtype(leaves[name]["dtype"]) if name in leaves else x.dtype


def in_groups(abstract: Mapping) -> Iterator[dict]:
    """The items of a flat dict of shapes, a few at a time: at most GROUP bytes, or one."""
    group, size = {}, 0
    for key, x in abstract.items():
        bytes_here = math.prod(x.shape) * x.dtype.itemsize
        if group and size + bytes_here > GROUP:
            yield group
            group, size = {}, 0
        group[key] = x
        size += bytes_here
    if group:
        yield group


def check_leaves(wanted: Mapping, leaves: Mapping[str, dict], where: str):
    """Raise InputError for the first array that is wanted and not in a checkpoint, or there in another shape."""
    for name, x in wanted.items():
        if name not in leaves:
            raise InputError(f"{where}: has no {name}; it was made with other settings, or by another version")
        if tuple(leaves[name]["shape"]) != x.shape:
            had = tuple(leaves[name]["shape"])
            raise InputError(f"{where}: {name} has shape {had}, the settings ask for {x.shape}")


def restore_trained(folder: pathlib.Path, step: int, settings: Settings) -> dict:
    """The averaged parameters of a VideoModel, but for those that stay as they are, on the current mesh."""
    return restore_ema(folder, step, abstract_on_mesh(abstract_trained(settings)))


MODELS = ("objective", "autoencoder", "text", "transformer")


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
            if field.name not in FREE and old != new:
                yield f"{group}.{field.name}", old, new


def check_models(stored: Settings, wanted: Settings, where: str, groups: tuple[str, ...] = MODELS):
    """Raise InputError for the first setting of a model that differs; other settings may."""
    for key, old, new in differing(stored, wanted, groups):
        raise InputError(
            f"{where}: made with config.{key}={old}, now {new}; change it back, or take a new --workdir"
        )


def abstract_on_mesh(tree):
    """Arrays or their shapes -> shapes with concrete shardings on the current mesh, as a restore wants them."""
    mesh = jax.sharding.get_mesh()

    def place(x):
        spec = x.sharding.spec if x.sharding is not None else jax.P()
        sharding = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, tree)
