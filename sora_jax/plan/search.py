"""Candidates for meshes, remat policies and numbers of micro-batches, ranked by formulas."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from sora_jax.config.schema import MeshSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import AXES
from sora_jax.kernels.cudnn_gpu import supports
from sora_jax.models.layers.remat import POLICIES
from sora_jax.plan import estimate
from sora_jax.plan.gpus import compiling_for
from sora_jax.plan.topology import GIB, Topology
from sora_jax.train.setup import check_batch

TRIES = 3  # candidates that are compiled
SLACK = 1.3  # estimated memory over the chip's, up to which a candidate is tried


def check(settings: Settings, topology: Topology, what: str) -> Settings:
    """The settings with a mesh without -1, and with the kernel that attention="auto" is on those chips.

    Raises: InputError if the mesh does not divide the batch, the heads or the weights.
    """
    sizes = sizes_of(settings.mesh, topology.devices)
    model, data = settings.transformer, settings.data
    if model.attention == "auto" and topology.compiled:
        model = dataclasses.replace(model, attention=_kernel(settings, topology, sizes, what))
    settings = dataclasses.replace(settings, mesh=MeshSettings(**sizes), transformer=model)
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    if what == "train":
        check_batch(settings, mesh)
    elif what == "sample":  # sampling pads its batch; text and heads must divide as in training
        rows = dataclasses.replace(data, batch=sizes["data"] * sizes["fsdp"], text_length=settings.text.max_tokens)
        train = dataclasses.replace(settings.train, accumulate=1)
        check_batch(dataclasses.replace(settings, data=rows, train=train), mesh)
    if not estimate.divides(settings, sizes):
        raise InputError(f"config.mesh: does not divide the width of a weight; {sizes}")
    return settings


def _kernel(settings: Settings, topology: Topology, sizes: dict[str, int], what: str) -> str:
    if not topology.chip.node:
        return "pallas"
    model = settings.transformer
    with compiling_for(topology.chip):
        clips = settings.data.clips_per_sequence if what == "train" else 1
        suited = sizes["ring"] == 1 and supports(jnp.dtype(model.dtype), model.width // model.heads, clips)
    return "cudnn" if suited else "chunked"


def sizes_of(mesh: MeshSettings, devices: int) -> dict[str, int]:
    """Sizes of the mesh's axes. Raises: InputError if they do not multiply to the number of devices."""
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > 0 and list(sizes.values()).count(-1) == 1:
        sizes = {axis: devices // fixed if size == -1 else size for axis, size in sizes.items()}
    if math.prod(sizes.values()) != devices or min(sizes.values()) < 1:
        wanted = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise InputError(f"config.mesh: {wanted} do not multiply to the {devices} devices of the topology")
    return sizes


def candidates(settings: Settings, topology: Topology) -> list[Settings]:
    """The settings with every mesh, remat and number of micro-batches that divides batch, model and chips."""
    train, found = settings.train, []
    accumulates = {train.accumulate, *(2**n for n in range(8))}
    for sizes in splits(topology.devices):
        mesh = MeshSettings(**dict(zip(AXES, sizes, strict=True)))
        for parts in sorted(accumulates):
            wanted = dataclasses.replace(settings, mesh=mesh, train=dataclasses.replace(train, accumulate=parts))
            try:
                checked = check(wanted, topology, "train")
            except InputError:
                break  # more micro-batches do not divide either
            for remat in (*POLICIES, "none"):
                model = dataclasses.replace(checked.transformer, remat=remat)
                found.append(dataclasses.replace(checked, transformer=model))
    return found


def splits(devices: int, axes: int = len(AXES)) -> list[tuple[int, ...]]:
    """All ways to write a number of devices as a product of `axes` sizes."""
    if axes == 1:
        return [(devices,)]
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    return [(n, *rest) for n in divisors for rest in splits(devices // n, axes - 1)]


def likely(settings: Settings, topology: Topology) -> bool:
    """Whether it may fit, by the estimated memory."""
    return estimate.peak_memory(settings, sizes_in(settings)) <= SLACK * topology.chip.room * GIB


def sizes_in(settings: Settings) -> dict[str, int]:
    return {axis: getattr(settings.mesh, axis) for axis in AXES}


def promising(settings: Settings, topology: Topology) -> list[Settings]:
    """Candidates that may fit, the fastest first by estimate; per mesh and remat, the fewest micro-batches.

    Raises: InputError if there is none.
    """
    found = [candidate for candidate in candidates(settings, topology) if likely(candidate, topology)]
    if not found:
        raise InputError(f"--search: nothing divides the batch and the model and fits into {topology}")
    best = {}
    for candidate in sorted(found, key=lambda candidate: candidate.train.accumulate):
        best.setdefault((candidate.mesh, candidate.transformer.remat), candidate)
    return sorted(best.values(), key=lambda candidate: seconds(candidate, topology))


def seconds(settings: Settings, topology: Topology) -> float:
    """Estimated seconds of a step, nothing overlapped."""
    data = settings.data
    flops = estimate.executed_flops(settings, "train", (data.batch, data.sequence_length, data.text_length))
    return estimate.roofline(settings, sizes_in(settings), topology, flops).most


def nearest_first(plan, topology: Topology) -> list[Settings]:
    """Those that may fit into what a plan does not, the ones that differ least from it first.

    By how far the estimate was off for the plan, that of the others is put right.
    """
    wrong = plan.needed / estimate.peak_memory(plan.settings, plan.sizes)
    room = topology.chip.room * GIB
    found = [
        c for c in candidates(plan.settings, topology) if wrong * estimate.peak_memory(c, sizes_in(c)) <= room
    ]

    def distance(candidate):
        more = abs(math.log2(candidate.train.accumulate / plan.settings.train.accumulate))
        mesh = sum(abs(math.log2(size / plan.sizes[axis])) for axis, size in sizes_in(candidate).items())
        return (candidate.transformer.remat != plan.settings.transformer.remat) + more + mesh, seconds(
            candidate, topology
        )

    return sorted(found, key=distance)
