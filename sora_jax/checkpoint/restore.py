"""Reading a checkpoint's arrays; none is used before its checksum is verified.

A checkpoint's `state` is a TrainState. A released model is read in its place wherever the weights are enough.
"""

import math
import pathlib
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util

from sora_jax.checkpoint.checksums import checksums, leaf_name, named_leaves
from sora_jax.checkpoint.meta import check_leaves, explain_broken, load_meta
from sora_jax.checkpoint.model_folder import WEIGHTS, load_params
from sora_jax.checkpoint.orbax_errors import BrokenCheckpoint, read_with_orbax
from sora_jax.checkpoint.renamed import present_name
from sora_jax.checkpoint.workdir import RELEASED, orbax_path
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.models.video_model import abstract_trained

STUDENT = "student"  # the group of parameters in checkpoints of moment matching, beside those of its critic
GROUP_BYTES = 2**31  # read at a time where arrays are cast, as both types are held in memory


def read_state(folder: pathlib.Path, step: int, abstract):
    """The arrays of a checkpoint that `abstract` asks for, not yet verified: see `verify`.

    Args:
      abstract: a TrainState of shapes with shardings, or a part of it as nested dicts.
    Raises: BrokenCheckpoint; InputError if it can't be read here.
    """
    path, handler = orbax_path(folder / str(step) / "state"), ocp.PyTreeCheckpointHandler()
    wanted = named_leaves(abstract)
    item = abstract
    if any(
        "quant_conv" in name for name in wanted
    ):  # of an autoencoder, which may have been written with old names
        stored = read_with_orbax(lambda: handler.metadata(path), path).tree
        if any(present_name(name) != name for name in named_leaves(stored)):
            item = jax.tree.map_with_path(
                lambda path, _: wanted.get(present_name(leaf_name(path)), ocp.PLACEHOLDER), stored
            )
    args = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=item is abstract,
    )
    state = read_with_orbax(lambda: handler.restore(path, args=args), path)
    if item is abstract:
        return state
    found = {present_name(name): x for name, x in named_leaves(state).items()}
    return jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in wanted])


def verify(state, leaves: Mapping[str, dict]):
    """Raise BrokenCheckpoint, in every process, for a wrong checksum; every process must call it."""
    wrong = [name for name, found in checksums(state).items() if leaves and leaves[name]["sum"] != found]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise BrokenCheckpoint(f"{wrong[0]}{more}: the checksum differs")


def verify_step(folder: pathlib.Path, step: int) -> int:
    """The number of arrays in a checkpoint, after all were read and verified on the first device.

    Raises: BrokenCheckpoint; InputError if it can't be read here, or has no checksums.
    """
    leaves = load_meta(folder, step).leaves
    if not leaves:
        raise InputError(f"{folder}/{step}: has no checksums, an early version wrote it")
    path, handler = orbax_path(folder / str(step) / "state"), ocp.PyTreeCheckpointHandler()
    stored = read_with_orbax(lambda: handler.metadata(path), path).tree
    if missing := leaves.keys() - {present_name(name) for name in named_leaves(stored)}:
        raise BrokenCheckpoint(f"{min(missing)} is not there")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    types = {
        name: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"], sharding=sharding)
        for name, leaf in leaves.items()
    }
    for group in in_groups(types):
        item = jax.tree.map_with_path(
            lambda path, _, group=group: group.get(present_name(leaf_name(path)), ocp.PLACEHOLDER), stored
        )
        restore_args = jax.tree.map(
            lambda x: ocp.RestoreArgs() if x is ocp.PLACEHOLDER else ocp.ArrayRestoreArgs(sharding=sharding), item
        )
        args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args)
        read = read_with_orbax(lambda args=args: handler.restore(path, args=args), path)
        found = {present_name(name): x for name, x in named_leaves(read).items()}
        verify({name: x for name, x in found.items() if name in group}, leaves)
    return len(leaves)


def restore_ema(folder: pathlib.Path, step: int, abstract_params: dict) -> dict:
    """The averaged parameters alone, in the shardings and types of `abstract_params`.

    Raises: InputError if they are broken, or not those asked for.
    """
    if folder.name == RELEASED:
        return load_params(folder / WEIGHTS, abstract_params)
    wanted = traverse_util.flatten_dict({"ema": abstract_params})
    found = {}
    with explain_broken(folder, step):
        leaves = load_meta(folder, step).leaves
        # Read in the stored types: the checksums are of these.
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
    """The name as `checksums.named_leaves` has it; the keys of a list's items are numbers."""
    return ".".join(map(str, path))


def _stored_type(leaves, name, x):
    return jnp.dtype(leaves[name]["dtype"]) if name in leaves else x.dtype


def in_groups(abstract: Mapping) -> Iterator[dict]:
    """The items of a flat dict of shapes in groups of at most GROUP_BYTES, or of one item."""
    group, size = {}, 0
    for key, x in abstract.items():
        item_bytes = math.prod(x.shape) * x.dtype.itemsize
        if group and size + item_bytes > GROUP_BYTES:
            yield group
            group, size = {}, 0
        group[key] = x
        size += item_bytes
    if group:
        yield group


def restore_trained(folder: pathlib.Path, step: int, settings: Settings) -> dict:
    """The averaged trained parameters of a VideoModel, float32, on the current mesh."""
    return restore_video_model(folder, step, settings, abstract_trained(settings))


def restore_video_model(folder: pathlib.Path, step: int, settings: Settings, abstract: dict) -> dict:
    """The averaged parameters of a run's VideoModel, on the current mesh; of moment matching, the student's.

    Args:
      settings: of the run.
      abstract: shapes and types of the parameters.
    """
    abstract = abstract_on_mesh(abstract)
    if settings.objective == "moment_matching" and folder.name != RELEASED:
        return restore_ema(folder, step, {STUDENT: abstract})[STUDENT]
    return restore_ema(folder, step, abstract)


def abstract_on_mesh(tree):
    """Shapes with concrete shardings on the current mesh, of arrays or their shapes, as a restore needs them."""
    mesh = jax.sharding.get_mesh()

    def place(x):
        spec = x.sharding.spec if x.sharding is not None else jax.P()
        sharding = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, tree)
