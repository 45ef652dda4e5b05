"""Where the cycles of a compiled TPU program go: products, elementwise work, copies; by the compiler's estimate.

Kernels and collectives have no estimate and are not in these numbers (see sora_jax.plan.attention).
"""

import collections
import dataclasses
import re

from sora_jax.plan.hlo import Instruction, Program, product_flops

# A fusion of nothing but these moves data.
COPIES = {"copy", "transpose", "pad", "slice", "dynamic-slice", "dynamic-update-slice", "reshape", "concatenate"}
FREE_IN_COPIES = {"parameter", "constant", "bitcast", "convert", "tuple", "fusion"}
PRODUCTS = "products"
WINDOWED = "windowed products"
KINDS = (PRODUCTS, WINDOWED, "elementwise", "copies")


@dataclasses.dataclass(frozen=True)
class KindCycles:
    """Cycles of one run of a program on one chip, of instructions of one kind.

    Args:
      kind: one of KINDS. "windowed products" are loops over the shards of a weight, which add up the product in
        memory.
      cycles: the compiler's estimate.
      flops: of matrix products and convolutions.
      hbm_bytes: read from and written to HBM.
    """

    kind: str
    cycles: float
    flops: float
    hbm_bytes: float


def cycles_by_kind(text: str) -> tuple[KindCycles, ...]:
    """The cycles of a program by kind, in the order of KINDS, without kinds that take none.

    Args:
      text: compiled.as_text(); its instructions count as often as the loops around them run.
    """
    program, sums = Program(text), collections.defaultdict(lambda: [0.0, 0.0, 0.0])
    for name, times in program.run_counts(set()).items():
        for instruction in program.parts[name].values():
            if not (found := re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)):
                continue
            inside = list(_inside(program, name, instruction))
            flops = sum(product_flops(part, names) for names, part in inside if part.op in ("dot", "convolution"))
            kind = _kind(name, [part.op for _, part in inside], flops)
            for n, value in enumerate((float(found[1]), flops, program.hbm_bytes(instruction, name))):
                sums[kind][n] += times * value
    return tuple(KindCycles(kind, *sums[kind]) for kind in KINDS if sums[kind][0])


def _inside(program: Program, name: str, instruction: Instruction):
    """(names around it, instruction) of an instruction, or of all that a fusion holds."""
    if instruction.op != "fusion":
        yield program.parts[name], instruction
        return
    for names, part, _ in program.expand(instruction.called):
        yield names, part


def _kind(name: str, ops: list[str], flops: float) -> str:
    if "windowed" in name:
        return WINDOWED
    if flops:
        return PRODUCTS
    moving = all(op in COPIES or op in FREE_IN_COPIES or op.startswith("copy") for op in ops)
    return "copies" if moving and not set(ops) <= FREE_IN_COPIES else "elementwise"
