"""Peak host memory of reading a published transformer on to eight devices, over what they hold of it.

Run: python tests/benchmarks/load_memory.py [--gigabytes 2]
Writes a random checkpoint in bfloat16, as diffusers shards them, reads it in a process of its own, float32 and
bfloat16, and prints a Markdown table.
"""

import argparse
import json
import math
import multiprocessing
import os
import pathlib
import resource
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from sora_jax.config.schema import MeshSettings, TransformerSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.interop.tables import foreign_shapes, load_foreign
from sora_jax.interop.tensors import tensors_in
from sora_jax.interop.wan.tables import transformer_table
from sora_jax.models.dit import DiT

DEVICES, SHARD_BYTES = 8, 2**29


def settings_of(gigabytes: float) -> TransformerSettings:
    """Wan 1.3B's width, and as many layers as make so many gigabytes of bfloat16."""
    layer = 2 * (8 * 1536**2 + 2 * 1536 * 8960)
    return TransformerSettings(layers=round(gigabytes * 1e9 / layer))


def write(folder: pathlib.Path, settings: TransformerSettings) -> int:
    """Random tensors in shards with an index; returns their bytes."""
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        shapes = foreign_shapes(transformer_table(settings), DiT, settings)
    where, held, shard, total = {}, {}, 0, 0
    rng = np.random.default_rng(0)
    for name in [*shapes, None]:
        if held and (name is None or sum(x.nbytes for x in held.values()) > SHARD_BYTES):
            safetensors.numpy.save_file(held, folder / f"model-{shard}.safetensors")
            shard, held = shard + 1, {}
        if name is not None:
            held[name] = rng.random(shapes[name], np.float32).astype(ml_dtypes.bfloat16)
            where[name] = f"model-{shard}.safetensors"
            total += 2 * math.prod(shapes[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return total


def read(folder: pathlib.Path, settings: TransformerSettings, dtype: str, results):
    """Put (bytes on the devices, peak bytes over what the process had before) into `results`."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    with jax.set_mesh(make_mesh(MeshSettings(data=1, fsdp=DEVICES))):
        tensors = tensors_in(folder)
        table = transformer_table(settings)
        foreign_shapes(table, DiT, settings)  # traced: what that takes is not the weights'
        before = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        params = load_foreign(tensors, table, DiT, settings, where=str(folder), dtype=dtype)
        jax.block_until_ready(params)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        shards = (shard.data for x in jax.tree.leaves(params) for shard in x.addressable_shards)
        results.put((sum(shard.nbytes for shard in shards), peak))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")  # a process of its own, so a peak of its own
    settings = settings_of(options.gigabytes)
    with tempfile.TemporaryDirectory() as folder:
        total = write(pathlib.Path(folder), settings)
        print(f"{total / 1e9:.2f} GB of bfloat16 on {DEVICES} devices\n")
        print("| held as | GB on the devices | peak GB | peak over held |\n|---|---|---|---|")
        for dtype in ("float32", "bfloat16"):
            results = context.Queue()
            process = context.Process(target=read, args=(pathlib.Path(folder), settings, dtype, results))
            process.start()
            held, peak = results.get()
            process.join()
            print(f"| {dtype} | {held / 1e9:.2f} | {peak / 1e9:.2f} | {peak / held:.2f} |", flush=True)


if __name__ == "__main__":
    main()
