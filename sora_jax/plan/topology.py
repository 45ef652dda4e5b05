"""Chips that can be planned for: memory, rates and topologies."""

import dataclasses
import math
import re

import jax
import numpy as np

from sora_jax import compat
from sora_jax.cluster.join import GPU_MEMORY_FRACTION
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.train.monitoring.flops import PEAK_FLOPS

INSTALL = "pip install 'sora_jax[plan]'"
INSTALL_CUDA = "pip install 'sora_jax[cuda]'"
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as JAX counts them.

    Args:
      kind: JAX's device_kind, the key of PEAK_FLOPS.
      hbm: memory, in GiB.
      hbm_rate: of the memory, in bytes/s.
      ici: sent over all links of the torus (two for each of `dims`), or by a GPU over NVLink, in bytes/s.
      dcn: sent to other slices or nodes, in bytes/s.
      dims: dimensions of the torus; 0 for GPUs.
      whole: chips in a side of the torus from which on it closes into a ring.
      cores: devices on a chip.
      tensor_cores: cores of a device, which share the heads of an attention kernel.
      clock: cycles a second; 0: unknown.
      node: GPUs in a node; 0 for TPUs.
    """

    kind: str
    hbm: float
    hbm_rate: float
    ici: float
    dcn: float
    dims: int = 0
    whole: int = 0
    cores: int = 1
    node: int = 0
    tensor_cores: int = 1
    clock: float = 0.0

    @property
    def room(self) -> float:
        """GiB that a program may use."""
        return self.hbm * (GPU_MEMORY_FRACTION if self.node else 1)

    @property
    def peak(self) -> float:
        """Dense bfloat16 FLOP/s."""
        return PEAK_FLOPS[self.kind]


# Source for TPUs: cloud.google.com/tpu/docs, the page of each version (ICI: half of its bidirectional rate; DCN
# of v5e and v6e: the rate of a pod over its 256 chips; tpu7x: one of two devices). For GPUs: data sheets of the
# SXM boards (NVLink: half of the bidirectional rate), and one 400 Gbit/s port per GPU (A100: 200), as in a DGX.
CHIPS = {
    "v5e": Chip("TPU v5 lite", 16, 819e9, ici=200e9, dcn=3.125e9, dims=2, whole=16, clock=1.5e9),
    "v6e": Chip("TPU v6 lite", 32, 1600e9, ici=400e9, dcn=12.5e9, dims=2, whole=16, clock=1.75e9),
    "v5p": Chip("TPU v5", 95, 2765e9, ici=600e9, dcn=6.25e9, dims=3, whole=4, tensor_cores=2, clock=1.75e9),
    "tpu7x": Chip("TPU7x", 96, 3690e9, ici=300e9, dcn=6.25e9, dims=3, whole=4, cores=2, clock=2.2e9),
    "a100": Chip("NVIDIA A100-SXM4-80GB", 80, 2039e9, ici=300e9, dcn=25e9, node=8),
    "h100": Chip("NVIDIA H100 80GB HBM3", 80, 3350e9, ici=450e9, dcn=50e9, node=8),
    "h200": Chip("NVIDIA H200", 141, 4800e9, ici=450e9, dcn=50e9, node=8),
}
LARGEST = {"v5e": 256, "v6e": 256, "v5p": 6144, "tpu7x": 9216}  # chips in a slice, by the same pages
EXAMPLES = "v5e:16x16, v6e:16x16, v5p:4x4x4, tpu7x:4x4x4, h100:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one kind of chip; `shape`: the torus of a slice, or the number of GPUs."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int

    @property
    def devices(self) -> int:
        return math.prod(self.shape) * self.slices * self.chip.cores

    @property
    def compiled(self) -> bool:
        """Whether steps can be compiled: always for TPUs, for GPUs if JAX's plugin for CUDA is installed."""
        return bool(self.chip.dims) or compat.cuda_versions() is not None

    def __str__(self):
        return self.name + (f" x {self.slices} slices" if self.slices > 1 else "")


def read_topology(text: str, slices: int = 1) -> Topology:
    """Topology of "v5p:4x4x4" or "h100:8". Raises: InputError for one that does not exist."""
    name, _, shape = text.partition(":")
    if name not in CHIPS:
        raise InputError(f"--topology={text}: no chip {name!r}, {did_you_mean(name, CHIPS)} (e.g. {EXAMPLES})")
    chip, wanted = CHIPS[name], CHIPS[name].dims or 1
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") != wanted - 1:
        how = {1: "their number", 2: "ROWSxCOLUMNS", 3: "three sides"}[wanted]
        raise InputError(f"--topology={text}: {name} takes {how} after the colon (e.g. {EXAMPLES})")
    sides = tuple(map(int, shape.split("x")))
    if chip.node and sides[0] > chip.node and sides[0] % chip.node:
        raise InputError(
            f"--topology={text}: beyond one node's {chip.node}, {name}s come in multiples of {chip.node}"
        )
    if slices < 1 or (slices > 1 and not chip.dims):
        raise InputError(
            f"--slices={slices}: slices are of TPU, 1 or more; of GPUs give the number of all of them"
        )
    if chip.dims and math.prod(sides) > LARGEST[name]:
        raise InputError(
            f"--topology={text}: a slice of {name} has at most {LARGEST[name]:,} chips; take --slices"
        )
    # A host has 2 x 2 chips. Cubes of 4 x 4 x 4 can be joined freely; smaller shapes are parts of one cube.
    odd = [side for side in sides[:2] if side % 2] if chip.dims else []
    if chip.dims == 3 and math.prod(sides) > 64:
        odd += [side for side in sides if side % 4]
    if odd:
        raise InputError(f"--topology={text}: {name} comes in {_shapes(chip, sides)}; no side is {odd[0]}")
    return Topology(text, chip, sides, slices)


def _shapes(chip: Chip, sides) -> str:
    """Existing shapes near one that does not exist."""
    if chip.dims == 2:
        known = [(2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    else:
        known = [
            (2, 2, 1),
            (2, 2, 2),
            (2, 2, 4),
            (2, 4, 4),
            (4, 4, 4),
            (4, 4, 8),
            (4, 8, 8),
            (8, 8, 8),
            (8, 8, 16),
        ]
    near = sorted(known, key=lambda shape: abs(math.log(math.prod(shape) / math.prod(sides))))[:3]
    return ", ".join("x".join(map(str, shape)) for shape in sorted(near, key=math.prod))


def make_devices(topology: Topology) -> list:
    """The devices of a TPU topology, as compilation targets.

    Raises: InputError if libtpu, which has the compiler, is not installed or does not know the topology.
    """
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise InputError(f"libtpu, which has the TPU's compiler, is not installed: {INSTALL}") from None
    more = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **more)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"--topology={topology.name}: libtpu says: {str(error).splitlines()[0]}") from None
    return list(found.devices)


def rate(topology: Topology, devices: list, link: str) -> float:
    """Bytes/s that each device of a group can send to the next one in a ring.

    Over ICI these are the links along the sides of the torus that the group spans: both directions of a side that
    closes into a ring, one of a side that does not.
    """
    chip = topology.chip
    if link == "DCN" or chip.node:
        return chip.dcn if link == "DCN" else chip.ici
    places = np.array([device.coords[: chip.dims] for device in devices])
    total = 0.0
    for row, side in zip(places.T, topology.shape, strict=True):
        spanned = len(set(row.tolist()))
        closed = spanned == side and side % chip.whole == 0
        total += 0 if spanned == 1 else chip.ici / chip.dims * (1 if closed else 0.5)
    return total or chip.ici / chip.dims  # two cores of one chip
