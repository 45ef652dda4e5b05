"""Cycles of the attention kernels for TPUs by the compiler's own schedule, on a machine without one.

    python tests/benchmarks/kernel_schedule.py --chips=v5e,v5p,v6e,v7x --widths=64,128

libtpu writes, for each kernel that it compiles, one line per VLIW bundle with the units that it uses; a bundle
issues in one cycle. A grid step runs one of the kernel's bodies (all pairs of a block seen, or some; with or
without a running maximum), a region of the bundles that a branch skips. Printed for each body: cycles per tile of
512 x 512 logits of one head, its ratio to the MXU's limit, and cycles of each unit. Waits for memory and the start
of a grid step are not in it: it ranks kernels and bounds them from below.

--write keeps the cycles in sora_jax/plan/attention_cycles.json, which `plan` reads.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import tempfile

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}
# Bodies in the order of the program; they are its longest regions.
BODIES = {
    "forward": ("whole", "whole, maximum", "partly", "partly, maximum"),
    "backward": ("whole", "partly"),
}
PRODUCTS = {"forward": 2, "backward": 5}
TILE = 512
SHORT = 100  # bundles; shorter regions start copies of blocks
LENGTH = 8192
TABLE = pathlib.Path(__file__).parents[2] / "sora_jax/plan/attention_cycles.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default="v5e,v5p,v6e,v7x")
    parser.add_argument("--widths", default="64,128", help="Widths of a head.")
    parser.add_argument("--blocks", help="Queries and keys of a block, e.g. 512,2048; default: those in use.")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    dump = pathlib.Path(tempfile.mkdtemp())
    os.environ |= {
        "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true",
        "JAX_PLATFORMS": "cpu",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    made = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for chip in options.chips.split(","):
        for width in map(int, options.widths.split(",")):
            found = measure(chip, width, options.blocks, dump)
            made.setdefault(found.pop("kind"), {})[str(width)] = found
    shutil.rmtree(dump)
    if options.write:
        TABLE.write_text(json.dumps(made, indent=1) + "\n")
        print(f"written: {TABLE}")


def measure(chip: str, width: int, wanted: str | None, dump: pathlib.Path) -> dict:
    """Cycles of a grid step of both kernels, by body."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from sora_jax.kernels.tpu.backward import backward
    from sora_jax.kernels.tpu.blocks import choose_blocks
    from sora_jax.kernels.tpu.forward import forward
    from sora_jax.plan.topology import CHIPS

    devices = topologies.get_topology_desc(TOPOLOGIES[chip], "tpu").devices
    mesh = jax.sharding.Mesh(devices[:1], ("one",))
    everywhere = jax.NamedSharding(mesh, jax.P())
    x = jax.ShapeDtypeStruct((1, 2, LENGTH, width), jnp.bfloat16, sharding=everywhere)
    ids = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32, sharding=everywhere)
    row = jax.ShapeDtypeStruct((1, 2, LENGTH), jnp.float32, sharding=everywhere)
    topology = CHIPS[TOPOLOGIES[chip].split(":")[0]]
    with jax.set_mesh(mesh):
        blocks = choose_blocks(x, x)
        if wanted:
            q, kv = map(int, wanted.split(","))
            blocks = blocks._replace(q=q, kv=kv, resident=blocks.resident // q * q)
        found = {"kind": topology.kind, "queries": blocks.q, "keys": blocks.kv}
        for name, function, arguments in (
            ("forward", forward, (x, x, x, ids, ids)),
            ("backward", backward, ((x, x, x, ids, ids), x, row, x)),
        ):
            jax.jit(lambda *a, f=function: f(*a, blocks=blocks)).lower(*arguments).compile()
            # A core's FLOPs of a cycle.
            rate = topology.peak / topology.clock / topology.tensor_cores
            found[name] = read(dump, name, blocks, PRODUCTS[name] * 2 * TILE**2 * width / rate, f"{chip} {width}")
    return found


def read(dump: pathlib.Path, name: str, blocks, limit: float, label: str) -> dict[str, int]:
    """Cycles of each body of a kernel from the compiler's dump, which is removed; prints them by tile and unit."""
    files = list(dump.glob(f"*attention_{name}*"))
    (bundles,) = (path for path in files if re.search(r"\d-final_bundles.txt", path.name))
    (use,) = (path for path in files if path.name.endswith("-final_hlo-static-per-bundle-utilization.txt"))
    head, rows = use.read_text().split("== UTILIZATION:")
    rows = [list(map(int, row.split())) for row in rows.strip().splitlines() if row[:1].isdigit()]
    units, capacity = head.strip().splitlines()[-2:]
    units = dict(zip(re.findall(r"[\w:]+", units), map(int, capacity.split()), strict=False))
    found = regions(bundles.read_text())
    longest = sorted(sorted(found, key=lambda region: region[0] - region[1])[: len(BODIES[name])])
    tiles = blocks.q * blocks.kv / TILE**2
    made = {}
    for body, (start, end) in zip(BODIES[name], longest, strict=True):
        made[body] = end - start
        use = {unit: sum(row[n] for row in rows[start:end]) / units[unit] / tiles for n, unit in enumerate(units)}
        busy = ", ".join(f"{unit} {cycles:,.0f}" for unit, cycles in use.items() if cycles > limit / 20)
        per_tile = made[body] / tiles
        print(
            f"{label} {name}, {body}: {per_tile:,.0f} a tile, {per_tile / limit:.2f} of the limit; {busy}",
            flush=True,
        )
    short = [end - start for start, end in found if (start, end) not in longest]
    made |= {"ends": sum(short), "step": len(rows) - sum(made.values()) - sum(short)}
    print(f"{label} {name}: {made['step']:,} a step beside its body, {made['ends']:,} for each block", flush=True)
    for path in files:
        path.unlink()
    return made


def regions(text: str) -> list[tuple[int, int]]:
    """(first, end) bundle of the regions that a branch skips and that hold no other, in a kernel's bundles."""
    starts, branches, number = {}, [], -1
    for line in text.splitlines():
        if not re.match(r" *(0x[0-9a-f]+|0) ", line):
            continue
        number += 1
        starts |= {int(region): number for region in re.findall(r"Start(?:/End empty)? region (\d+)", line)}
        branches += [(number, int(region)) for region in re.findall(r"target = \$region(\d+)", line)]
    found = [(first, starts[region]) for first, region in branches if starts.get(region, 0) > first + SHORT]
    return [(a, b) for a, b in found if not any((a, b) != (c, d) and a <= c and d <= b for c, d in found)]


if __name__ == "__main__":
    main()
