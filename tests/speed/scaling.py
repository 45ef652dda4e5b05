"""What a training step costs on one chip as the pod grows along `data`, told by the compiler, without the chips.

Run: python tests/speed/scaling.py --config=configs/t2v_1_3b.py   (needs libtpu; a row takes minutes)
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

from sora_jax.cli import read_config
from sora_jax.plan.plan import Planner
from sora_jax.plan.topology import GIB, read_topology
from sora_jax.settings import MeshSettings, from_config

PODS = ("v5p:2x2x2", "v5p:4x4x4", "v5p:8x8x8", "v5p:16x16x16")
FSDP = 8  # what is left of the chips is data


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs/t2v_1_3b.py"))
    parser.add_argument("--pods", nargs="*", default=PODS)
    parser.add_argument("--picture", default=str(ROOT / "docs/images/scaling.png"))
    options = parser.parse_args()
    settings = from_config(read_config(options.config))
    made = []
    columns = ("chips", "batch", "peak GiB", "TFLOP", "over data GiB", "over fsdp GiB", "least s", "compile s")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for pod in options.pods:
        topology = read_topology(pod)
        wanted = dataclasses.replace(
            settings,
            mesh=MeshSettings(data=topology.devices // FSDP, fsdp=FSDP),
            data=dataclasses.replace(settings.data, batch=topology.devices),
            train=dataclasses.replace(settings.train, accumulate=1),
        )
        plan = Planner(topology, "train", rich.console.Console(stderr=True)).compile(wanted)
        sent = dict.fromkeys(("data", "fsdp"), 0.0)
        for c in plan.counts.collectives:
            # Sums of gradients over both axes at once cross data.
            sent["data" if "data" in c.axes else "fsdp"] += c.wire
        cells = (
            f"{topology.devices:,}",
            f"{wanted.data.batch:,}",
            f"{plan.needed / GIB:.1f}",
            f"{plan.counts.all_flops / 1e12:,.0f}",
            f"{sent['data'] / GIB:.2f}",
            f"{sent['fsdp'] / GIB:.2f}",
            f"{plan.roofline.least:.2f}",
            f"{plan.seconds:.0f}",
        )
        print("| " + " | ".join(cells) + " |", flush=True)
        made.append((topology.devices, plan.needed / GIB, sent["data"] / GIB, sent["fsdp"] / GIB))
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    chips, *lines = zip(*made, strict=True)
    for line, name in zip(lines, ("memory at the peak", "sent over data", "sent over fsdp"), strict=True):
        axis.plot(chips, line, marker="o", label=name)
    axis.set_xscale("log", base=2)
    axis.set_xticks(chips, [f"{n:,}" for n in chips])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("chips, each with one row of the batch")
    axis.set_ylabel("GiB on a chip, each step")
    axis.legend()
    figure.savefig(options.picture, dpi=120)


if __name__ == "__main__":
    main()
