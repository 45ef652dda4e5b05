"""The collectives of a compiled program: bytes, mesh axes and link of each."""

import dataclasses
import itertools
import math
import re

import jax
import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_IOTA = r"\[[\d,]+\](?:T\([\d,]+\))?"


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes in a step.

    Args:
      axes: mesh axes along which the chips of a group differ.
      link: ICI or DCN.
      group: one of the groups, as positions in the mesh.
      count: number of runs.
      bytes: of the whole gathered or reduced array, on one chip.
      wire: bytes that a chip sends if the array goes round a ring.
    """

    kind: str
    axes: tuple[str, ...]
    link: str
    group: tuple[int, ...]
    count: float
    bytes: float
    wire: float


class Layout:
    """Positions, in the mesh, of the numbers in a program's replica groups."""

    def __init__(self, mesh: jax.sharding.Mesh):
        self.names, self.shape = mesh.axis_names, mesh.devices.shape
        devices = mesh.devices.flat
        slices = np.array([getattr(device, "slice_index", None) or 0 for device in devices])
        # With several TPU slices a program belongs to one slice; its groups number the chips of that slice.
        self.local = np.flatnonzero(slices == slices[0])
        # Devices joined by the fast network: a slice, or the GPUs of a node, which belong to one process.
        gpus = devices[0].platform == "gpu"
        self.islands = np.array([device.process_index for device in devices]) if gpus else slices

    def axes(self, group) -> tuple[str, ...]:
        """The mesh axes along which the members of a group differ."""
        places = np.unravel_index(np.array(group), self.shape)
        return tuple(name for name, row in zip(self.names, places, strict=True) if len(np.unique(row)) > 1)

    def link(self, group) -> str:
        return "DCN" if len(set(self.islands[np.array(group)].tolist())) > 1 else "ICI"

    def read(self, op: str, rest: str, read: int, made: int, *, scattered: bool) -> Collective | None:
        """The collective of an instruction; None if it is not one, or moves nothing.

        Args:
          rest: the instruction's attributes.
          read, made: bytes of its operands and of its result.
          scattered: whether only a part of the result is kept.
        """
        kind = op.removesuffix("-start")
        if kind == "send" and "megascale" in rest:
            return self._between_slices(rest, read)
        if kind not in KINDS:
            return None
        if kind == "collective-permute":
            text = rest.split("source_target_pairs=", 1)[1].split("}}", 1)[0]
            pairs = [(int(a), int(b)) for a, b in re.findall(r"(\d+),(\d+)", text)]
            moved = [self.local[list(pair)] for pair in pairs if pair[0] != pair[1]]
            if not moved:
                return None
            crossed = {axis for pair in moved for axis in self.axes(pair)}
            axes, group = tuple(name for name in self.names if name in crossed), tuple(moved[0].tolist())
            return Collective(kind, axes, self.link(group), group, 1, read, read * len(moved) / len(pairs))
        group = tuple(self.local[list(first_group(rest, len(self.local)))].tolist())
        if len(group) == 1:
            return None
        if scattered and kind == "all-reduce":
            kind = "reduce-scatter"
        size = max(read, made)
        return Collective(
            kind, self.axes(group), self.link(group), group, 1, size, ring_bytes(kind, size, len(group))
        )

    def _between_slices(self, rest, size):
        """The part of a collective that crosses slices, which a TPU program sends through the host."""
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', rest)[1].lower().replace("_", "-")
        group = tuple(int(np.flatnonzero(self.islands == part)[0]) for part in sorted(set(self.islands.tolist())))
        return Collective(kind, self.axes(group), "DCN", group, 1, size, ring_bytes(kind, size, len(group)))


def ring_bytes(kind: str, size: float, n: int) -> float:
    """Bytes that each of n chips sends of an array of `size` bytes, in a ring."""
    return size * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def first_group(rest: str, devices: int) -> tuple[int, ...]:
    """The first of an instruction's replica groups, in any form that XLA prints.

    The forms are `{{0,1},{2,3}}`, lists; `[2,2]<=[4]` or `[2,2]<=[2,2]T(1,0)`, the rows of a transposed range; and
    `mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}`, axes of a mesh.
    """
    text = rest.split("replica_groups=", 1)[1]
    if found := re.match(rf"mesh\[([^]]*)\](?:, device_ids=\(({_IOTA})\))? ?\{{([^}}]*)\}}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", found[1])}
        ids = _iota(found[2]) if found[2] else np.arange(math.prod(sizes.values()))
        axes = [(name, int(low or 1), int(size or sizes[name])) for name, low, size in _PART.findall(found[3])]
        return _over_axes(ids, sizes, axes)
    if found := re.match(rf"\[(\d+),(\d+)\]<=({_IOTA})", text):
        return tuple(_iota(found[3]).reshape(int(found[1]), int(found[2]))[0].tolist())
    if found := re.match(r"\{\{([\d,]+)\}", text):
        return tuple(map(int, found[1].split(",")))
    if text.startswith("{}"):
        return tuple(range(devices))
    raise ValueError(f"replica groups in an unknown form: {text[:200]}")


_PART = re.compile(r"'([^']*)'(?::\((\d+)\)(\d+))?")  # 'a', or 'a':(2)4, a part of it


def _iota(text: str) -> np.ndarray:
    """[2,4]T(1,0): 0 ... 7 in rows of 4, transposed, flat."""
    shape, order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    shape = tuple(map(int, shape.split(",")))
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(tuple(map(int, order.split(",")))) if order else ids).ravel()


def _over_axes(ids, sizes: dict[str, int], axes) -> tuple[int, ...]:
    """The group of the first device; axes: (name, product of the sizes before the part in that axis, its size)."""
    shape, inside = [], []
    for name, size in sizes.items():
        parts = [(low, low * part) for n, low, part in axes if n == name]
        cuts = sorted({1, size, *(edge for part in parts for edge in part)})
        for low, high in itertools.pairwise(cuts):
            shape.append(high // low)
            inside.append(any(first <= low and high <= last for first, last in parts))
    picked = ids.reshape(shape)[tuple(slice(None) if part else 0 for part in inside)]
    return tuple(picked.ravel().tolist())
