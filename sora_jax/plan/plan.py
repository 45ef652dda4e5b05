"""Plans of a step on chips that are not here: memory, traffic and estimated time, by compiling or by formulas."""

import dataclasses
import functools
import math
import pathlib
import re
import time

import jax
import rich.console

from sora_jax.cluster.compiler_flags import compiler_options
from sora_jax.config.schema import REFINE, Settings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.mesh import make_mesh
from sora_jax.core.progress import run_interruptibly
from sora_jax.plan import estimate
from sora_jax.plan.attention import Schedule, schedule
from sora_jax.plan.cycles import KindCycles, cycles_by_kind
from sora_jax.plan.estimate import Roofline
from sora_jax.plan.gpus import compiling_for, make_gpus
from sora_jax.plan.hlo import Counts, count
from sora_jax.plan.programs import chip_bytes, make_program
from sora_jax.plan.report import save, show, show_ranking
from sora_jax.plan.search import TRIES, check, nearest_first, promising, sizes_in
from sora_jax.plan.topology import GIB, INSTALL_CUDA, Topology, make_devices, rate

UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Needs of one step, on each device unless stated otherwise.

    Args:
      sizes: of the mesh axes.
      what: train, sample, decode or encode.
      parts: exact bytes that the process holds, by name.
      needed: bytes at the peak, including those held beside the program.
      useful: FLOPs of the model by formula, over all devices; None: not counted.
      executed: FLOPs executed, with recomputation, by formula, over all devices; None: not counted.
      temporaries, host: bytes that the compiler asks for, on the device and on the host; None and 0 if not
        compiled.
      counts: of the compiled program.
      cycles: of it by kind, kernels apart; empty for GPUs.
      cost_analysis: XLA's own, which counts the bodies of loops once.
      seconds: that compiling took; 0: not compiled.
    """

    settings: Settings
    topology: Topology
    sizes: dict[str, int]
    what: str
    parts: dict[str, int]
    needed: float
    useful: float | None
    executed: float | None
    roofline: Roofline | None = None
    temporaries: float | None = None
    host: float = 0.0
    counts: Counts | None = None
    cycles: tuple[KindCycles, ...] = ()
    cost_analysis: dict[str, float] | None = None
    seconds: float = 0.0

    @property
    def compiled(self) -> bool:
        return self.seconds > 0

    @property
    def fits(self) -> bool:
        return self.needed <= self.topology.chip.room * GIB

    @property
    def over(self) -> float:
        """GiB missing on a device."""
        return self.needed / GIB - self.topology.chip.room

    @property
    def schedule(self) -> Schedule | None:
        """Cycles of a compiled step with its attention kernels; None on chips without a table of them."""
        if not self.counts or not self.counts.cycles:
            return None
        return schedule(self.counts.kernel_calls, self.counts.cycles, self.topology.chip)

    @property
    def bound(self) -> tuple[str, float]:
        """The part of a compiled step that takes longest if everything overlaps, and its seconds."""
        seconds = {key.upper(): getattr(self.roofline, key) for key in ("hbm", "ici", "dcn")}
        if cycles := self.schedule:
            seconds["attention"] = cycles.seconds * cycles.share
            seconds["cycles beside attention"] = cycles.seconds * (1 - cycles.share)
        return max(seconds.items(), key=lambda part: part[1])

    def mfu(self, seconds: float) -> float | None:
        """Model FLOPs utilization of a step that takes this long."""
        if self.useful is None or not seconds:
            return None
        return self.useful / self.topology.devices / self.topology.chip.peak / seconds

    @property
    def flags(self) -> str:
        """Flags that turn the config into that of this plan."""
        mesh = ",".join(f"{axis}={size}" for axis, size in self.sizes.items() if size > 1) or "data=1"
        remat, parts = self.settings.transformer.remat, self.settings.train.accumulate
        return f"--mesh={mesh} --config.transformer.remat={remat} --config.train.accumulate={parts}"


class Planner:
    """Makes plans of one kind of step for one topology."""

    def __init__(self, topology: Topology, what: str, console: rich.console.Console):
        self.topology, self.what, self.console = topology, what, console
        self.flags = compiler_options(topology.name.partition(":")[0], topology.slices)

    def estimate(self, settings: Settings) -> Plan:
        """A plan of a training step by formulas alone."""
        settings = check(settings, self.topology, self.what)
        sizes = sizes_in(settings)
        data = settings.data
        shape = (data.batch, data.sequence_length, data.text_length)
        executed = estimate.executed_flops(settings, "train", shape)
        return Plan(
            settings,
            self.topology,
            sizes,
            "train",
            parts=estimate.held(settings, sizes),
            needed=estimate.peak_memory(settings, sizes),
            useful=estimate.useful_flops(settings, "train", shape),
            executed=executed,
            roofline=estimate.roofline(settings, sizes, self.topology, executed),
        )

    def compile(self, settings: Settings) -> Plan:
        """A plan of the compiled step."""
        settings = check(settings, self.topology, self.what)
        chip = self.topology.chip
        mesh = make_mesh(settings.mesh, make_gpus(self.topology) if chip.node else make_devices(self.topology))
        sizes = dict(mesh.shape)
        tried = ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
        started = time.monotonic()
        doing = f"compiling {self.what} for {self.topology}, {tried or 'one device'}"
        with self.console.status(doing):
            with jax.set_mesh(mesh), compiling_for(chip):
                step = make_program(settings, self.what)
                parts = {name: chip_bytes(tree, sizes) for name, tree in step.parts.items()}
                lowered = step.lower()
                try:
                    compile_step = functools.partial(lowered.compile, compiler_options=self.flags)
                    compiled, needed = run_interruptibly(compile_step, self.console, doing), 0.0
                except jax.errors.JaxRuntimeError as error:
                    if (needed := out_of_memory(str(error))) is None:
                        raise
            made = Plan(
                settings,
                self.topology,
                sizes,
                self.what,
                parts,
                needed,
                useful=estimate.useful_flops(settings, self.what, step.shape),
                executed=estimate.executed_flops(settings, self.what, step.shape),
                seconds=time.monotonic() - started,
            )
            if needed:
                return made
            memory, text = compiled.memory_analysis(), compiled.as_text()
            counts = count(text, mesh)
            analysis = compiled.cost_analysis() or {}  # absent for GPUs
            cost = {key: value for key, value in analysis.items() if key in ("flops", "bytes accessed")}
        # Parts that are not arguments, such as the autoencoder while the solver runs, take memory too.
        beside = max(0, sum(parts.values()) - memory.argument_size_in_bytes)
        return dataclasses.replace(
            made,
            needed=memory.peak_memory_in_bytes + beside,
            temporaries=memory.temp_size_in_bytes,
            host=memory.host_temp_size_in_bytes,
            counts=counts,
            cycles=cycles_by_kind(text),
            cost_analysis=cost,
            roofline=self.roofline(counts, mesh),
        )

    def roofline(self, counts: Counts, mesh: jax.sharding.Mesh) -> Roofline:
        chip, seconds = self.topology.chip, {"ICI": 0.0, "DCN": 0.0}
        devices = list(mesh.devices.flat)
        for c in counts.collectives:
            seconds[c.link] += c.wire / rate(self.topology, [devices[i] for i in c.group], c.link)
        compute, hbm = counts.all_flops / chip.peak, counts.hbm_bytes / chip.hbm_rate
        return Roofline(compute, hbm, seconds["ICI"], seconds["DCN"], serial=chip.node > 0)


def out_of_memory(message: str) -> float | None:
    """Bytes that a program needs, from the compiler's out-of-memory error; None for other errors."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"[Uu]sed ([\d.]+)([BKMGT]) of ([\d.]+)([BKMGT]) hbm", message)
    return float(found[1]) * UNITS[found[2]] if found else None


def plan(
    settings: Settings,
    topology: Topology,
    *,
    what: str,
    search: bool,
    formulas: bool = False,
    out: pathlib.Path,
    console: rich.console.Console,
) -> Plan:
    """Plan a step, print the plan, and write plan.json and plan.png.

    Args:
      what: train, sample, decode or encode.
      search: compare meshes, remat policies and numbers of micro-batches.
      formulas: compile nothing.
      out: folder for the files.
    Raises: InputError for chips and settings that don't go together; and, after everything is written, for a step
      that does not fit into the chips' memory.
    """
    if what not in ("train", "sample", "decode", "encode"):
        raise InputError(f"--what={what}: {did_you_mean(what, ('train', 'sample', 'decode', 'encode'))}")
    if what == "train" and settings.data.autoencoder and settings.objective != REFINE:
        raise InputError("config.data.autoencoder: a step with an autoencoder can't be planned; leave it empty")
    by_formulas = what == "train" and settings.objective == "flow"
    if not by_formulas and (search or formulas or not topology.compiled):
        compiler = "" if topology.compiled else f", and GPUs without their compiler: {INSTALL_CUDA}"
        raise InputError(
            f"--what={what}: --search and --formulas are for a training step of config.objective=flow{compiler}"
        )
    planner = Planner(topology, what, console)
    make = planner.compile if topology.compiled and not formulas else planner.estimate
    change = None
    if search:
        tried = [make(candidate) for candidate in promising(settings, topology)[:TRIES]]
        tried.sort(key=lambda made: (not made.fits, made.roofline.most if made.roofline else math.inf))
        show_ranking(tried, console)
        made = tried[0]
    else:
        made = make(settings)
        if not made.fits and by_formulas:
            others = (make(candidate) for candidate in nearest_first(made, topology)[:TRIES])
            change = next((other for other in others if other.fits), None)
    show(made, console)
    save(made, change, out)
    console.print(f"written: {out / 'plan.json'}, {out / 'plan.png'}", highlight=False)
    if not made.fits:
        better = (
            f"this fits: {change.flags}"
            if change
            else "no mesh, remat policy or number of micro-batches near it fits"
        )
        if not by_formulas:
            better = "use more devices, or devices with more memory"
        raise InputError(f"does not fit, by {made.over:.1f} GiB a device; {better}")
    return made
