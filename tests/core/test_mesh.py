"""Laying devices out: slices of TPUs, and what a mesh asks of the sizes of data and models."""

import dataclasses
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.experimental import topologies

from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import AXES, make_mesh
from sora_jax.train.setup import check_batch


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax.experimental.mesh_utils reads of a TPU."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5"


def pod(slices, *, side=2):
    """Slices of side x side x 1 chips, in no order."""
    chips = [
        Chip(n, n // side**2, (n % side, n // side % side, 0), process_index=n // side**2)
        for n in range(slices * side**2)
    ]
    return [chips[n] for n in np.random.default_rng(0).permutation(len(chips))]


def slices_of(mesh):
    """The slice of each device, laid out as the mesh."""
    return np.vectorize(lambda chip: chip.slice_index)(mesh.devices)


@pytest.mark.parametrize(
    "sizes, outer",
    [({"data": 2, "fsdp": 4}, 0), ({"data": 4, "ulysses": 2}, 0), ({"data": 1, "fsdp": 4, "ring": 2}, 1)],
    ids=["data", "part-of-data", "fsdp"],
)
def test_slices_differ_along_the_outermost_axis_alone(sizes, outer):
    mesh = make_mesh(MeshSettings(**sizes), pod(2))
    assert mesh.axis_names == AXES and mesh.size == 8
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}
    found = np.moveaxis(slices_of(mesh), outer, 0)
    half = len(found) // 2
    assert (found[:half] == 0).all() and (found[half:] == 1).all()


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"data": 2, "fsdp": 6}, "config.mesh.data: 2, but there are 3 slices: data, or fsdp where data is 1"),
        ({"data": 1, "ulysses": 12}, "config.mesh.ulysses: 12, but there are 3 slices"),
    ],
)
def test_an_outermost_axis_that_slices_do_not_divide_is_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(MeshSettings(**sizes), pod(3))


def test_a_mesh_over_two_slices_of_a_compiled_topology():
    pytest.importorskip("libtpu", reason="pip install libtpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=2)
    found = slices_of(make_mesh(MeshSettings(data=2, fsdp=4, ring=2, ulysses=2), topology.devices))
    assert (found[0] == 0).all() and (found[1] == 1).all()


@pytest.mark.parametrize(
    "sizes, changes, message",
    [
        (
            {"ulysses": 8},
            {"text_length": 16},
            "config.transformer.heads: 4 must be a multiple of ulysses x tensor = 8; 1, 2, 4 would do, and "
            "config.mesh.ring splits",
        ),
        ({"ring": 8}, {}, "config.data.text_length: 12 must be a multiple of ring x ulysses = 8"),
        (
            {"ring": 2, "ulysses": 2},
            {"sequence_length": 30},
            "config.data.sequence_length: 30 must be a multiple of ring",
        ),
        ({"fsdp": 8, "data": 1}, {"batch": 4}, "config.data.batch: 4 must be a multiple of"),
    ],
)
def test_sizes_that_do_not_divide_are_told_with_what_would(sizes, changes, message):
    settings = tiny.change(tiny.SETTINGS, data=changes)
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        check_batch(settings, tiny.mesh_of(**sizes))


def test_a_ring_has_no_limit_by_the_heads():
    settings = tiny.change(tiny.SETTINGS, data={"text_length": 16}, transformer={"heads": 3}, text={"heads": 3})
    check_batch(settings, tiny.mesh_of(ring=8))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the threads of a process by name")
def test_each_fake_device_can_wait_in_several_collectives_at_once():
    """A thread for each is too few: a step of eight devices on a busy machine ends in XLA's abort."""
    jnp.ones(8).block_until_ready()  # there are no threads before the first array
    names = [task.read_text().strip() for task in pathlib.Path("/proc/self/task").glob("*/comm")]
    assert sum(name.endswith("XLAEigen") for name in names) >= 4 * jax.device_count()
