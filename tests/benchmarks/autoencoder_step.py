"""The cost of a step of the autoencoder's stream on TPU, by the compiler, without the chip.

Run: python tests/benchmarks/autoencoder_step.py [--chips v6e] [--context 4]   (needs libtpu; minutes a line)
Prints a Markdown table: GiB of one chip at the peak, and how much of it is carried from step to step; the
compiler's estimate of cycles, by kind of instruction, and beside it the convolutions' cycles at the chip's full
rate; bytes of HBM. --text keeps the compiled programs.
"""

import argparse
import collections
import functools
import os
import pathlib
import re
import sys
import time

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

import jax
import jax.numpy as jnp

from sora_jax.checkpoint.restore import abstract_on_mesh
from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh, spec
from sora_jax.interop.wan.tables import WAN21_AUTOENCODER, WAN22_AUTOENCODER
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.autoencoder.pixels import frame_axes
from sora_jax.models.autoencoder.streaming import decode_next, encode_next
from sora_jax.models.layers.params import abstract_params
from sora_jax.plan.hlo import Program, product_flops
from sora_jax.plan.topology import make_devices, read_topology

MODELS = {"Wan 2.1": WAN21_AUTOENCODER, "Wan 2.2": WAN22_AUTOENCODER}
SIZES = {"480p": (480, 832), "720p": (720, 1280)}
FLOPS_PER_CYCLE = {"v5e": 4 * 2 * 128**2, "v6e": 4 * 2 * 256**2}
ARITHMETIC = {"add", "multiply", "subtract", "divide", "exponential", "rsqrt", "reduce", "logistic", "negate"}
KINDS = ("convolutions", "copies", "pads and slices", "elementwise")
GIB = 2**30


def compile_step(settings, half: str, size: tuple[int, int], latents: int, dtype: str):
    """(compiled step of so many latent frames after the first, bytes of its cache on one chip)."""
    side, H, W = settings.spatial_stride, *size
    frames, step, kind = (1, latents), decode_next, jnp.float32
    shape = (H // side, W // side, settings.latent_channels)
    if half == "encode":
        frames, step, kind = (1, latents * settings.temporal_stride), encode_next, jnp.uint8
        shape = (H, W, 3)
    axes = frame_axes(H // side, W // side)
    layout = jax.NamedSharding(jax.sharding.get_mesh(), spec(f". . {axes} ."))
    first, then = (jax.ShapeDtypeStruct((1, count, *shape), kind, sharding=layout) for count in frames)
    params = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, dtype, sharding=a.sharding),
        abstract_on_mesh(abstract_params(Autoencoder, settings)),
    )
    _, cache = jax.eval_shape(functools.partial(step, settings), params, first, None)
    cache = abstract_on_mesh(cache)
    held = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(cache))
    chips = 1 if axes == ". ." else layout.mesh.size
    return step.lower(settings, params, then, cache).compile(), held / chips


def costs(text: str, rate: float) -> tuple[dict[str, float], float, float]:
    """(cycles by kind, cycles of the convolutions at full rate, bytes of HBM) of a compiled program."""
    program, cycles, full, moved = Program(text), collections.Counter(), 0.0, 0.0
    for name, times in program.run_counts(set()).items():
        for instruction in program.parts[name].values():
            found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
            inside = [(program.parts[name], instruction)]
            if instruction.op == "fusion":
                inside = [(names, part) for names, part, _ in program.expand(instruction.called)]
            flops = sum(product_flops(part, names) for names, part in inside if part.op in ("dot", "convolution"))
            if flops:
                kind = "convolutions"
            elif instruction.op.startswith("copy"):
                kind = "copies"
            else:
                kind = "elementwise" if ARITHMETIC & {part.op for _, part in inside} else "pads and slices"
            cycles[kind] += times * int(found[1]) if found else 0
            full += times * flops / rate
            moved += times * program.hbm_bytes(instruction, name)
    return cycles, full, moved


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", nargs="*", default=list(FLOPS_PER_CYCLE), choices=FLOPS_PER_CYCLE)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--halves", nargs="*", default=["encode", "decode"], choices=["encode", "decode"])
    parser.add_argument("--context", type=int, default=1, help="chips that share a frame: 1, 2 or 4")
    parser.add_argument("--latents", type=int, default=1, help="latent frames a step")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights in memory")
    parser.add_argument("--text", type=pathlib.Path, help="folder for the text of the compiled programs")
    options = parser.parse_args()
    kinds = " | ".join(KINDS)
    columns = f"chip | model | video | step | peak GiB | carried | M cycles | {kinds} | at full rate | GB | s"
    print(f"| {columns} |\n|{'---|' * (columns.count('|') + 1)}", flush=True)
    for chip in options.chips:
        devices = make_devices(read_topology(f"{chip}:2x2"))[: options.context]
        mesh = make_mesh(MeshSettings(ulysses=options.context), devices)
        for name in options.models:
            for size in options.sizes:
                for half in options.halves:
                    start = time.time()
                    case = (MODELS[name], half, SIZES[size], options.latents, options.dtype)
                    first = f"| {chip} | {name} | {size} | {half} |"
                    try:
                        with jax.set_mesh(mesh):
                            compiled, held = compile_step(*case)
                    except jax.errors.JaxRuntimeError as error:
                        print(f"{first} does not fit: {str(error).splitlines()[0][:200]} |", flush=True)
                        continue
                    text, peak = compiled.as_text(), compiled.memory_analysis().peak_memory_in_bytes / GIB
                    cycles, full, moved = costs(text, FLOPS_PER_CYCLE[chip])
                    values = [sum(cycles.values()), *(cycles[kind] for kind in KINDS), full]
                    cells = " | ".join(f"{value / 1e6:.1f}" for value in values)
                    last = f"{moved / 1e9:.1f} | {time.time() - start:.0f}"
                    print(f"{first} {peak:.1f} | {held / GIB:.1f} | {cells} | {last} |", flush=True)
                    if options.text:
                        options.text.mkdir(parents=True, exist_ok=True)
                        path = options.text / f"{chip}-{name}-{size}-{half}-{options.context}.txt".replace(" ", "")
                        path.write_text(text)


if __name__ == "__main__":
    main()
