"""Time of the attention kernels by the compiler's schedule of each, and what follows for a step.

The compiler does not count kernels in its cycles. Theirs are grid steps times cycles of a step, as
tests/benchmarks/kernel_schedule.py read them from the compiler's dump; on chips with two cores both take heads.
Waits for memory are not in these numbers: they bound the time of a step from below.
"""

import dataclasses
import functools
import json
import math
import pathlib

from sora_jax.plan.topology import Chip

# Products [queries, width] x [width, keys] in each attention kernel of kernels/tpu.
PRODUCTS = {"attention_forward": 2, "attention_backward": 5}
TABLE = pathlib.Path(__file__).with_name("attention_cycles.json")


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """Runs of an attention kernel.

    Args:
      name: "attention_forward" or "attention_backward".
      queries: (B, A, N, K) on one chip. keys: their number, M.
      times: runs in a step.
    """

    name: str
    queries: tuple[int, int, int, int]
    keys: int
    times: float


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Cycles of one step on one chip.

    Args:
      attention: of attention kernels, every sequence full and of one clip.
      rest: of everything else that the compiler counts; collectives are not in it.
      seconds: of both.
    """

    attention: float
    rest: float
    seconds: float

    @property
    def share(self) -> float:
        """Attention's share of the cycles."""
        return self.attention / (self.attention + self.rest)


@functools.cache
def _table() -> dict:
    return json.loads(TABLE.read_text())


def schedule(calls: tuple[KernelCall, ...], rest: float, chip: Chip) -> Schedule | None:
    """The cycles of a step; None for chips whose kernels are not in the table."""
    if chip.kind not in _table():
        return None
    attention = sum(kernel_cycles(call, chip) for call in calls)
    return Schedule(attention, rest, (attention + rest) / chip.clock)


def kernel_cycles(call: KernelCall, chip: Chip) -> float:
    """Cycles of all runs of a kernel, all pairs of its blocks visited."""
    by_width = _table()[chip.kind]
    B, A, N, K = call.queries
    width = min((int(w) for w in by_width if int(w) >= K), default=max(map(int, by_width)))
    measured = by_width[str(width)]
    cycles = measured[call.name.removeprefix("attention_")]
    area = measured["queries"] * measured["keys"]
    blocks = (N if call.name == "attention_forward" else call.keys) / measured["queries"]
    # Some schedules issue products faster than the data sheet's rate.
    limit = PRODUCTS[call.name] * 2 * area * width / (chip.peak / chip.clock / chip.tensor_cores)
    body = max(cycles["whole"], limit)
    of_head = N * call.keys / area * (body + cycles["step"]) + blocks * cycles["ends"]
    return call.times * B * math.ceil(A / chip.tensor_cores) * of_head * max(1.0, K / width)
