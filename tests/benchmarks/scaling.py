"""What a training step costs on one chip as the pod grows along `data`, without the chips.

Run: python tests/benchmarks/scaling.py --config=configs/t2v_1_3b.py   (needs libtpu; a row takes minutes)
     python tests/benchmarks/scaling.py --formulas                     (seconds; nothing is compiled)
Prints a Markdown table and draws it: the batch grows with the chips, so that each chip's work stays the same.
"""

import argparse
import dataclasses
import os
import pathlib
import sys

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import rich.console

from sora_jax.config.files import read_config
from sora_jax.config.load import from_config
from sora_jax.config.schema import MeshSettings
from sora_jax.plan import estimate
from sora_jax.plan.plan import Planner
from sora_jax.plan.topology import GIB, read_topology

PODS = ("v5p:2x2x2", "v5p:4x4x4", "v5p:8x8x8", "v5p:16x16x16")
FSDP = 8  # what is left of the chips is data


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs/t2v_1_3b.py"))
    parser.add_argument("--pods", nargs="*", default=PODS)
    parser.add_argument("--picture", default=str(ROOT / "docs/images/scaling.png"))
    parser.add_argument("--formulas", action="store_true", help="estimate, compile nothing")
    options = parser.parse_args()
    settings = from_config(read_config(options.config))
    made = []
    columns = ("chips", "batch", "held GiB", "peak GiB", "TFLOP", "over data GiB", "over fsdp GiB", "compile s")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for pod in options.pods:
        topology = read_topology(pod)
        wanted = dataclasses.replace(
            settings,
            mesh=MeshSettings(data=topology.devices // FSDP, fsdp=FSDP),
            data=dataclasses.replace(settings.data, batch=topology.devices),
            train=dataclasses.replace(settings.train, accumulate=1),
        )
        planner = Planner(topology, "train", rich.console.Console(stderr=True))
        sent = dict.fromkeys(("data", "fsdp"), 0.0)
        if options.formulas:
            plan = planner.estimate(wanted)
            for (axis, _), bytes in estimate.traffic(plan.settings, plan.sizes, topology).items():
                sent[axis] += bytes
            flops = plan.executed / topology.devices
        else:
            plan = planner.compile(wanted)
            for c in plan.counts.collectives:  # a sum of gradients over both axes at once crosses data
                sent["data" if "data" in c.axes else "fsdp"] += c.wire
            flops = plan.counts.all_flops
        row = (sum(plan.parts.values()), plan.needed, sent["data"], sent["fsdp"])
        held, needed, over_data, over_fsdp = (f"{size / GIB:.2f}" for size in row)
        cells = (f"{topology.devices:,}", f"{wanted.data.batch:,}", held, needed, f"{flops / 1e12:,.0f}")
        print("| " + " | ".join((*cells, over_data, over_fsdp, f"{plan.seconds:.0f}")) + " |", flush=True)
        made.append((topology.devices, *(size / GIB for size in row)))
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    chips, *lines = zip(*made, strict=True)
    for line, name in zip(lines, ("held", "memory at the peak", "sent over data", "sent over fsdp"), strict=True):
        axis.plot(chips, line, marker="o", label=name)
    axis.set_xscale("log", base=2)
    axis.set_xticks(chips, [f"{n:,}" for n in chips])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("chips, each with one row of the batch")
    axis.set_ylabel("GiB on a chip, each step" + (", by formulas" if options.formulas else ""))
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(options.picture, dpi=120)


if __name__ == "__main__":
    main()
