"""What one TPU chip needs to encode and to decode a video of any length, told by the compiler, without the chip.

Run: python tests/benchmarks/autoencoder_memory.py   (needs libtpu; a line takes three to five minutes)
Prints a Markdown table: GiB that the compiler says the program of one step of the stream holds at its peak.
"""

import argparse
import functools
import os
import pathlib
import sys
import time

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from sora_jax.core.mesh import AXES
from sora_jax.interop.wan.tables import WAN21_AUTOENCODER, WAN22_AUTOENCODER
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.autoencoder.streaming import decode_next, encode_next
from sora_jax.models.layers.params import abstract_params

MODELS = {"Wan 2.1": WAN21_AUTOENCODER, "Wan 2.2": WAN22_AUTOENCODER}
SIZES = {"480p": (480, 832), "720p": (720, 1280)}
CHIPS = {"v5e": 16, "v6e": 32}  # GiB
GIB = 2**30


def step_memory(mesh, settings, half: str, size: tuple[int, int], dtype: str) -> tuple[float, float]:
    """(GiB at the peak, GiB of it that the stream carries from step to step) of a step of one latent frame."""
    on_chip = jax.NamedSharding(mesh, jax.P())
    side, H, W = settings.spatial_stride, *size
    with jax.set_mesh(mesh):
        params = abstract_params(Autoencoder, settings)
        if half == "encode":
            step = encode_next
            shapes = [(1, frames, H, W, 3) for frames in (1, settings.temporal_stride)]
            kind = jnp.uint8
        else:
            step = decode_next
            shapes = [(1, 1, H // side, W // side, settings.latent_channels)] * 2
            kind = jnp.float32
        place = functools.partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on_chip))
        params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), params)
        begin, go_on = (jax.ShapeDtypeStruct(shape, kind) for shape in shapes)
        _, cache = jax.eval_shape(functools.partial(step, settings), place(params), place(begin), None)
        compiled = step.lower(settings, place(params), place(go_on), place(cache)).compile()
        carried = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(cache))
        return compiled.memory_analysis().peak_memory_in_bytes / GIB, carried / GIB


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", nargs="*", default=list(CHIPS), choices=CHIPS)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--dtype", default="bfloat16", help="of the weights in memory")
    options = parser.parse_args()
    print(f"| chip | model | video | step | peak GiB | of it carried | compile s |\n|{'---|' * 7}")
    for chip in options.chips:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2")
        mesh = jax.sharding.Mesh(
            np.array(topology.devices[:1]).reshape((1,) * len(AXES)),
            AXES,
            axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES),
        )
        for name in options.models:
            for size in options.sizes:
                for half in ("encode", "decode"):
                    start = time.time()
                    try:
                        peak, carried = step_memory(mesh, MODELS[name], half, SIZES[size], options.dtype)
                        cells = f"{peak:.1f} | {carried:.1f}"
                    except jax.errors.JaxRuntimeError as error:
                        cells = f"does not fit: {str(error).splitlines()[0][:200]} |"
                    first = f"| {chip} ({CHIPS[chip]}) | {name} | {size} | {half} |"
                    print(f"{first} {cells} | {time.time() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
