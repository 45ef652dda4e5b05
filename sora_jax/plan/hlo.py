"""FLOPs, memory traffic and collectives of a compiled program, from its text (HLO after all optimization).

XLA's own cost analysis counts the body of a loop once, and Pallas kernels not at all. Here every instruction
counts as often as the loops around it run, and attention kernels count by the shapes of their operands.
"""

import collections
import dataclasses
import functools
import math
import re

import jax
import numpy as np

from sora_jax.plan.attention import PRODUCTS, KernelCall
from sora_jax.plan.collectives import Collective, Layout

# The same for cuDNN's flash attention: Dao et al. 2022 (arXiv 2205.14135), appendix B.
CUDNN = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}
# Instructions that move no bytes themselves; the instructions inside a call count their own.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "while"}
FREE |= {"call", "conditional", "send", "recv", "optimization-barrier", "iota"}

_LINE = re.compile(r"^ *(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|body|to_apply)=%?([\w.\-]+)")
_NAME = re.compile(r"%([\w.\-]+)")
_KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn\$\w+|__cublas[$\w]+)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of an instruction's type; `near`: it is in the chip's fast memory, not in HBM."""

    kind: str
    shape: tuple[int, ...]
    near: bool

    @property
    def bytes(self) -> int:
        bits = {"pred": "8", "token": "0", "opaque": "0"}.get(self.kind) or re.search(r"\d+", self.kind)[0]
        return math.prod(self.shape) * int(bits) // 8

    def far(self, bytes: float = math.inf) -> float:
        """Bytes of HBM that it, or a part of it of that many bytes, takes."""
        return 0 if self.near else min(bytes, self.bytes)


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    op: str
    arrays: tuple[Array, ...]  # of its type
    operands: tuple[str, ...]
    rest: str  # attributes
    root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @property
    def called(self) -> str:
        return _CALLED.search(self.rest)[1]


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts of one run of a program on one chip.

    Args:
      flops: of matrix products and convolutions.
      kernel_flops: of kernels, by name.
      hbm_bytes: read from and written to HBM; an operand that a kernel reads repeatedly counts once.
      kernel_calls: of attention kernels for TPUs.
      cycles: the compiler's own estimate without kernels and collectives; 0 for GPUs.
      unknown: what these numbers leave out.
    """

    flops: float
    kernel_flops: dict[str, float]
    kernel_calls: tuple[KernelCall, ...]
    hbm_bytes: float
    cycles: float
    collectives: tuple[Collective, ...]
    unknown: tuple[str, ...]

    @property
    def all_flops(self) -> float:
        return self.flops + sum(self.kernel_flops.values())


def count(text: str, mesh: jax.sharding.Mesh) -> Counts:
    """The counts of a program compiled for a mesh; `text` is compiled.as_text()."""
    program, layout = Program(text), Layout(mesh)
    sums: dict[str, float] = collections.defaultdict(float)
    kernels: dict[str, float] = collections.defaultdict(float)
    unknown, found, calls = set(), {}, []
    for name, times in program.run_counts(unknown).items():
        for names, instruction, caller in program.expand(name):
            if instruction.op in ("dot", "convolution"):
                sums["flops"] += times * product_flops(instruction, names)
            elif instruction.op == "custom-call" and _KERNEL.search(instruction.rest):
                kind, flops = kernel_flops(instruction, names)
                kernels[kind] += times * (flops or 0)
                if kind in PRODUCTS:
                    queries, keys = attention_shapes(instruction, names)
                    calls.append(KernelCall(kind, queries, keys, times))
                if flops is None:
                    unknown.add(f"FLOPs of the kernel {kind}")
                if kind == "cudnn fmhaSoftmaxBackward":
                    unknown.add(f"the workspace of {kind}, which cuDNN reports only on a GPU")
            read = sum(names[operand].bytes for operand in instruction.operands if operand in names)
            # The type of an asynchronous start includes its operands.
            made = instruction.bytes - (read if instruction.op.endswith("-start") else 0)
            scattered = caller is not None and "all-reduce-scatter" in caller.called
            if collective := layout.read(instruction.op, instruction.rest, read, made, scattered=scattered):
                # An asynchronous collective has several instructions with one channel.
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                key = (name, collective.kind, channel[1] if channel else instruction.name)
                found.setdefault(key, (times, collective))
        for instruction in program.parts[name].values():
            sums["bytes"] += times * program.hbm_bytes(instruction, name)
            cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
            sums["cycles"] += times * int(cycles[1]) if cycles else 0
    groups, together = {}, collections.defaultdict(lambda: np.zeros(3))
    for times, c in found.values():
        groups.setdefault((c.kind, c.axes, c.link), c.group)
        together[c.kind, c.axes, c.link] += times * np.array([1, c.bytes, c.wire])
    merged = []
    for (kind, axes, link), (number, size, wire) in together.items():
        merged.append(
            Collective(kind, axes, link, groups[kind, axes, link], float(number), float(size), float(wire))
        )
    return Counts(
        sums["flops"],
        dict(kernels),
        tuple(calls),
        sums["bytes"],
        sums["cycles"],
        tuple(sorted(merged, key=lambda c: -c.wire)),
        tuple(sorted(unknown)),
    )


class Program:
    """The computations of a program by name, each a dict of its instructions by name."""

    def __init__(self, text: str):
        self.parts: dict[str, dict[str, Instruction]] = {}
        self.entry, inside = "", None
        for line in text.splitlines():
            if line.endswith("{") and " -> " in line and not line.startswith(" "):
                entry, name = re.match(r"(ENTRY )?%?([\w.\-]+)", line).groups()
                inside = self.parts[name] = {}
                self.entry = name if entry else self.entry
            elif inside is not None and (found := _LINE.match(line)):
                op, arrays, operands, rest = _split(found[3])
                inside[found[2]] = Instruction(found[2], op, arrays, operands, rest, bool(found[1]))

    def run_counts(self, unknown: set[str]) -> dict[str, float]:
        """Number of runs of the entry, of the bodies of loops, and of calls and branches."""
        times: dict[str, float] = collections.defaultdict(float)

        def run(name, often):
            times[name] += often
            for instruction in self.parts[name].values():
                if instruction.op == "while":
                    trips = self.trips(instruction, self.parts[name])
                    if trips is None:
                        unknown.add(f"trips of the loop {instruction.name}, which counts once")
                    run(_attribute(instruction, "body"), often * (1 if trips is None else trips))
                elif instruction.op == "call":
                    run(instruction.called, often)
                elif instruction.op == "conditional":
                    branches = re.search(r"(branch_computations=\{|true_computation=)(.*)", instruction.rest)[2]
                    names = [branch for branch in _NAME.findall(branches) if branch in self.parts]
                    # One of them runs; count the longest.
                    run(max(names, key=lambda branch: len(self.parts[branch])), often)

        run(self.entry, 1)
        return times

    def trips(self, loop: Instruction, names: dict[str, Instruction]) -> int | None:
        """Trip count of a loop, by the compiler's note or by its counter `while i < n: i += step`; else None."""
        if told := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(told[1])
        condition, body = (self.parts[_attribute(loop, key)] for key in ("condition", "body"))
        test, last = (next(i for i in part.values() if i.root) for part in (condition, body))
        start = names[loop.operands[0]]
        if test.op != "compare" or "direction=LT" not in test.rest or {start.op, last.op} != {"tuple"}:
            return None
        counter = condition[test.operands[0]]
        if counter.op != "get-tuple-element":
            return None
        place = int(_attribute(counter, "index"))
        step = body[last.operands[place]]
        numbers = (
            _number(condition, test.operands[1]),
            _number(names, start.operands[place]),
            next((n for operand in step.operands if (n := _number(body, operand))), None),
        )
        if step.op != "add" or None in numbers:
            return None
        limit, first, by = numbers
        return max(0, -((first - limit) // by))

    def expand(self, name: str, caller=None):
        """(names around it, instruction, caller) of all instructions of a computation and of its fusions."""
        for instruction in self.parts[name].values():
            yield self.parts[name], instruction, caller
            if instruction.op in ("fusion", "async-start"):
                yield from self.expand(instruction.called, instruction)

    def hbm_bytes(self, instruction: Instruction, name: str) -> float:
        """Bytes that an instruction reads from and writes to HBM; a slice counts its own bytes only."""
        names, op = self.parts[name], instruction.op
        if op in FREE or op.endswith(("-done", "-update")):
            return 0
        arrays = [names[operand].arrays for operand in instruction.operands]
        if op in ("copy-start", "slice-start", "slice", "dynamic-slice", "gather"):
            made = instruction.arrays[0]
            return made.far() + arrays[0][0].far(made.bytes)
        if op == "dynamic-update-slice":
            return arrays[1][0].far() + instruction.arrays[0].far(arrays[1][0].bytes)
        if op == "fusion" and "async-collective" in instruction.name:
            return instruction.arrays[0].far()
        touched, written = self.traffic(instruction.called) if op == "fusion" else ({}, ())
        if op == "fusion" and instruction.called.startswith("async_collective"):
            # A product fused with a part of a collective, whose buffers pass through.
            through = re.findall(r"\{(\d+)\}: \((\d+), \{\}", instruction.rest)
            outputs, inputs = ({int(pair[n]) for pair in through} for n in (0, 1))
            written = [0 if n in outputs else part for n, part in enumerate(written)]
            touched = {n: 0 if n in inputs else part for n, part in touched.items()}
        read = sum(a.far(touched.get(n, math.inf)) for n, kinds in enumerate(arrays) for a in kinds)
        parts = written or [math.inf] * len(instruction.arrays)
        return read + sum(a.far(part) for a, part in zip(instruction.arrays, parts, strict=False))

    @functools.cache  # noqa: B019 - a program is dropped after counting
    def traffic(self, name: str) -> tuple[dict[int, float], tuple[float, ...]]:
        """Bytes that a fusion reads of each parameter and writes of each result; inf: all."""
        names, touched = self.parts[name], {}
        users = collections.defaultdict(list)
        for instruction in names.values():
            for place, operand in enumerate(instruction.operands):
                users[operand].append((place, instruction))

        def read(source):
            total = 0
            for place, user in users[source]:
                if user.op in ("dynamic-slice", "slice", "gather") and place == 0:
                    total += user.bytes
                elif user.op == "bitcast":
                    total += read(user.name)
                elif user.op == "fusion":
                    total += self.traffic(user.called)[0].get(place, math.inf)
                elif user.op != "dynamic-update-slice" or place:
                    return math.inf
            return total

        def write(made):
            while made.op == "bitcast":
                made = names[made.operands[0]]
            if made.op == "tuple":
                return [part for operand in made.operands for part in write(names[operand])]
            if made.op == "dynamic-update-slice":
                return [names[made.operands[1]].bytes]
            if made.op == "fusion":
                return list(self.traffic(made.called)[1])
            return [math.inf]

        for instruction in names.values():
            if instruction.op == "parameter":
                touched[int(instruction.operands[0])] = read(instruction.name)
        return touched, tuple(write(next(i for i in names.values() if i.root)))


def _attribute(instruction: Instruction, key: str) -> str:
    return re.search(rf"\b{key}=%?([\w.\-]+)", instruction.rest)[1]


def _number(names: dict[str, Instruction], name: str) -> int | None:
    """The integer constant that an instruction is, else None."""
    while names[name].op in ("copy", "bitcast", "convert"):
        name = names[name].operands[0]
    value = names[name].operands[0] if names[name].op == "constant" else ""
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def _split(text: str) -> tuple[str, tuple[Array, ...], tuple[str, ...], str]:
    """(op, arrays of its type, operands, attributes) of the right side of an instruction."""
    end = _closing(text, 0) + 1 if text[0] == "(" else text.index(" ")
    arrays = tuple(
        Array(kind, tuple(map(int, shape.split(","))) if shape else (), "S(1)" in layout)
        for kind, shape, layout in _ARRAY.findall(text[:end])
    )
    start = text.index("(", end)
    stop = _closing(text, start)
    op, inner = text[end:start].strip(), text[start:stop]
    operands = (inner[1:],) if op in ("parameter", "constant") else tuple(_NAME.findall(inner))
    return op, arrays, operands, text[stop + 1 :]


def _closing(text: str, start: int) -> int:
    """Position of the bracket that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return start + found.start()
    raise ValueError(f"no closing bracket: {text[:200]}")


def product_flops(instruction: Instruction, names: dict[str, Instruction]) -> float:
    """FLOPs of a matrix product or a convolution; a multiply-add counts two."""
    left, right = (names[operand].arrays[0].shape for operand in instruction.operands[:2])
    made, rest = instruction.arrays[0].shape, instruction.rest
    if instruction.op == "dot":
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)[1]
        return 2 * math.prod(made) * math.prod(left[int(d)] for d in summed.split(",") if d)
    inputs, taps, outputs = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest).groups()
    groups = int((re.search(r"batch_group_count=(\d+)", rest) or [0, 1])[1])
    total = 2 * left[inputs.index("b")] // groups * made[outputs.index("f")] * right[taps.index("i")]
    window = re.search(r"window=\{([^}]*)\}", rest)
    window = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
    for n, dim in enumerate(sorted(set(inputs) - set("bf"))):
        sizes = left[inputs.index(dim)], right[taps.index(dim)], made[outputs.index(dim)]
        steps = (
            int(window[key].split("x")[n].split("_")[0]) if key in window else least
            for key, least in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
        )
        total *= _valid_taps(*sizes, *steps)
    return total


@functools.cache
def _valid_taps(size, taps, made, stride, pad, dilate, spread) -> int:
    """Number of (output, kernel tap) pairs inside the input, along one dimension of a convolution."""
    place = np.arange(made)[:, None] * stride + np.arange(taps) * spread - pad
    return int(((place >= 0) & (place <= (size - 1) * dilate) & (place % dilate == 0)).sum())


def attention_shapes(instruction: Instruction, names: dict[str, Instruction]):
    """((B, A, N, K) of the queries, number of keys) of an attention kernel."""
    arrays = [names[operand].arrays[0] for operand in instruction.operands]
    # The first operands that are no indices and no segment ids: q [..., A, N, K] and k [..., A, M, K].
    q, k = [a.shape for a in arrays if len(a.shape) > 2 and a.kind in ("bf16", "f32")][:2]
    return (math.prod(q[:-3]), *q[-3:]), k[-2]


def kernel_flops(instruction: Instruction, names: dict[str, Instruction]) -> tuple[str, float | None]:
    """(name, FLOPs) of a kernel, by its shapes; of other Pallas kernels by their own estimate, or None."""
    if (target := _KERNEL.search(instruction.rest)[1]) != "tpu_custom_call":
        left, right = (names[operand].arrays[0].shape for operand in instruction.operands[:2])
        name, flops = target.strip("_").replace("$", " "), None
        if target in CUDNN:  # q [B, N, A, K], k [B, M, A, K]
            flops = 2.0 * CUDNN[target] * math.prod(left) * right[1]
        elif summed := re.search(r'"lhs_contracting_dimensions":\s*\[([^]]*)\]', instruction.rest):
            sizes = (left[int(dim)] for dim in re.findall(r"\d+", summed[1]))
            flops = 2.0 * math.prod(instruction.arrays[0].shape) * math.prod(sizes)
        return name, flops
    for kind, products in PRODUCTS.items():
        if kind in instruction.name:
            queries, keys = attention_shapes(instruction, names)
            return kind, 2.0 * products * math.prod(queries) * keys
    told = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', instruction.rest)
    return instruction.name.split(".")[0], float(told[1]) if told else None
