"""Mesh axes, and the one table of how arrays are split over them.

The default size of an axis is 1, so that a laptop and a pod run the same code. `ring` and `ulysses` are the two
forms of context parallelism: both split the tokens of a sequence.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import mesh_utils

from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError

AXES = ("data", "fsdp", "ring", "ulysses", "tensor")

# Logical name of an array's dimension -> the mesh axes that it is split over.
RULES = {
    ".": None,  # on every chip
    "batch": ("data", "fsdp"),
    "few": "data",  # few vectors, which travel to the shards of a weight instead of gathering it
    "tokens": ("ring", "ulysses"),  # a sequence dimension of activations
    "height": ("ring", "ulysses"),  # rows of pixels or of latents in the autoencoder
    "width": ("ring", "ulysses"),  # or columns, where the rows don't divide
    "embed": ("fsdp", "ring", "ulysses"),  # the model width of a weight
    "mlp": "tensor",
    "heads": "tensor",
    "heads_all": (
        "ulysses",
        "tensor",
    ),  # heads inside attention, where Ulysses trades token shards for head shards
    "ring": "ring",  # tokens inside attention
}


def spec(axes: str) -> jax.P:
    """Mesh axes of an array, from one logical name per dimension, e.g. "batch tokens ."."""
    return jax.P(*(RULES[name] for name in axes.split()))


def axes_of(name: str) -> tuple[str, ...]:
    """The mesh axes that a logical dimension is split over."""
    axes = RULES[name] or ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def num_shards(name: str, sizes: Mapping[str, int]) -> int:
    """Number of shards of a logical dimension, on a mesh with axes of these sizes."""
    return math.prod(sizes[axis] for axis in axes_of(name))


def make_mesh(settings: MeshSettings, devices: list | None = None) -> jax.sharding.Mesh:
    """A mesh over `devices`, by default all.

    TPU slices are joined by the data centre's network alone. They are split along the outermost axis of a size
    above 1, so that only gradients or weights cross the slow network.

    Args:
      settings: sizes of the axes; one of them may be -1, for all remaining devices.
    Raises: InputError if the product of the sizes is not the number of devices, or the number of slices does not
      divide the outermost axis.
    """
    jax.config.update("jax_remove_size_one_mesh_axis_from_type", True)
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(settings, axis) for axis in AXES]
    fixed = 1
    for size in sizes:
        fixed *= 1 if size == -1 else size
    if sizes.count(-1) > 1 or fixed < 1:
        raise InputError(f"config.mesh: sizes {sizes} must be positive, at most one of them -1")
    sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    product = math.prod(sizes)
    if product != len(devices):
        wanted = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise InputError(f"config.mesh: {wanted} = {product} devices, but {len(devices)} are there")
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"})
    if slices < 2:
        # An axis may be a part of a side of the torus, such as 4 of 16.
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES))
    outer = next(i for i, size in enumerate(sizes) if size > 1)
    if outer > AXES.index("fsdp") or sizes[outer] % slices:
        raise InputError(
            f"config.mesh.{AXES[outer]}: {sizes[outer]}, but there are {slices} slices: data, or fsdp where data "
            f"is 1, must be a multiple of them"
        )
    over_slices = [slices if i == outer else 1 for i in range(len(sizes))]
    in_slice = [size // over for size, over in zip(sizes, over_slices, strict=True)]
    grid = mesh_utils.create_hybrid_device_mesh(in_slice, over_slices, devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES))


def is_split(x, axis: int) -> bool:
    """Whether this dimension of x is split over several devices."""
    sharding = jax.typeof(x).sharding
    return not sharding.mesh.empty and bool(sharding.spec[axis])


def platform() -> str:
    """The platform of the current mesh, "tpu", "gpu" or "cpu", also of devices that are not here (`plan`)."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def over_gloo() -> bool:
    """Whether collectives go through Gloo: on CPUs, between processes.

    Gloo matches the collectives of the same devices by their order alone. XLA:CPU (jaxlib 0.10.2) starts an
    independent collective while those of a loop run, at another time in each process, and Gloo confuses them. With
    Gloo, loops are unrolled or hold no collective.
    """
    return jax.default_backend() == "cpu" and jax.process_count() > 1


def local_rows(mesh: jax.sharding.Mesh, batch: int) -> list[int]:
    """The indices of the sequences of a global batch that this process's devices hold, ascending.

    Processes that share an axis ring, ulysses or tensor hold the same sequences.

    Raises: InputError if the batch can't be split evenly.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch % parts:
        raise InputError(
            f"config.data.batch: {batch} rows cannot be split over data x fsdp = {parts}; change it, or the mesh"
        )
    held = jax.sharding.NamedSharding(mesh, spec("batch")).addressable_devices_indices_map((batch,))
    return sorted({row for (part,) in held.values() for row in range(*part.indices(batch))})


def place(batch, axes: str):
    """Global arrays from this process's sequences of a batch.

    Args:
      batch: numpy arrays, the sequences in the order of `local_rows`.
      axes: logical axes of the leading dimensions, of which the first is "batch"; others are not split.
    """
    mesh = jax.sharding.get_mesh()
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    mine = local_rows(mesh, parts)

    def put(x: np.ndarray):
        layout = jax.sharding.NamedSharding(mesh, spec(" ".join((axes.split() + ["."] * x.ndim)[: x.ndim])))
        rows, odd = divmod(len(x), len(mine))  # of each part
        if odd:
            raise ValueError(f"{len(x)} rows for {len(mine)} parts of the mesh in this process")

        def shard(index):
            first = mine.index((index[0].start or 0) // rows) * rows
            return x[first : first + rows][:, *index[1:]]

        return jax.make_array_from_callback((rows * parts, *x.shape[1:]), layout, shard)

    return jax.tree.map(put, batch)
