"""How long a save holds a run, and how long until it is on disk, with and without its checksums.

Run: python tests/benchmarks/save.py [--megabytes 537] [--saves 5]
Writes states of random float32 leaves under the temporary folder, and prints a Markdown table of medians.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import sys
import tempfile
import time
import unittest.mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

import jax
import jax.numpy as jnp

from sora_jax.checkpoint import reader as checkpoint
from sora_jax.checkpoint.checksums import checksums, named_leaves
from sora_jax.checkpoint.manager import Checkpoints
from sora_jax.config.schema import MeshSettings, Settings
from sora_jax.core.mesh import make_mesh
from sora_jax.train.state import Weights

LEAVES = 32


def state_of(megabytes: float, seed: int) -> Weights:
    rows = round(megabytes * 1e6 / LEAVES / 4 / 1024)
    keys = jax.random.split(jax.random.key(seed), LEAVES)
    params = {f"leaf_{n}": jax.random.normal(k, (rows, 1024), out_sharding=jax.P()) for n, k in enumerate(keys)}
    return jax.block_until_ready(Weights(jnp.int32(seed), params))


def saves(folder: str, megabytes: float, count: int) -> tuple[float, float]:
    """Median seconds (a save holds the run, until all is written)."""
    held, whole = [], []
    with Checkpoints(pathlib.Path(folder), keep=1) as checkpoints:
        for n in range(1, count + 2):
            state, start = state_of(megabytes, n), time.perf_counter()
            checkpoints.save(state, Settings(), "none")
            held.append(time.perf_counter() - start)
            checkpoints.manager.wait_until_finished()
            whole.append(time.perf_counter() - start)
    return statistics.median(held[1:]), statistics.median(whole[1:])  # the first compiles


def no_sums(tree) -> dict[str, int]:
    return dict.fromkeys(named_leaves(tree), 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=537)
    parser.add_argument("--saves", type=int, default=5)
    options = parser.parse_args()
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        state = state_of(options.megabytes, 0)
        seconds = []
        for _ in range(options.saves + 1):
            start = time.perf_counter()
            checksums(state)
            seconds.append(time.perf_counter() - start)
        took = statistics.median(seconds[1:])
        rate = options.megabytes / took / 1e3
        print(f"checksums of {options.megabytes:.0f} MB: {took:.2f} s, {rate:.1f} GB/s\n")
        print("| | holds the run, s | until all is written, s |\n|---|---|---|")
        none = unittest.mock.patch.object(checkpoint, "checksums", no_sums)
        for name, change in (("with checksums", contextlib.nullcontext()), ("without", none)):
            with change, tempfile.TemporaryDirectory() as folder:
                held, whole = saves(folder, options.megabytes, options.saves)
            print(f"| {name} | {held:.2f} | {whole:.2f} |", flush=True)


if __name__ == "__main__":
    main()
