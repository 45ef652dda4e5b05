"""Time attention of a packed sequence against that of its clips one by one, taking turns in one run.

Run on a quiet machine: python tests/benchmarks/packed_attention.py [--rounds=5] [--dtype=float32]
Self-attention and attention to 128 text tokens a clip, forward and with the gradient, 12 heads of 64. The packed
sequences: 16 clips of 1,280 patches; the same with as much padding; 16 clips of 900 to 1,700; 4 of 4,096. Prints
the medians and the median of each round's ratio.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.kernels.attention import attention

HEADS, WIDTH, TOKENS = 12, 64, 128


def compile_call(lengths, kv_lengths, sizes, dtype, gradient):
    """A call without arguments for a sequence of these clips, padded to sizes (queries, keys)."""
    random = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(random.normal(size=(1, n, HEADS, WIDTH)), dtype) for n in (sizes[0], sizes[1], sizes[1])
    )
    ids = []
    for runs, size in zip((lengths, kv_lengths), sizes, strict=True):
        of_clips = np.repeat(np.arange(1, len(runs) + 1, dtype=np.int32), runs)
        ids.append(jnp.asarray(np.pad(of_clips, (0, size - len(of_clips))))[None])

    def loss(q, k, v, ids):
        return jnp.sum(attention(q, k, v, *ids, kernel="chunked").astype(jnp.float32))

    def forward(q, k, v, ids):
        return attention(q, k, v, *ids, kernel="chunked")

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2)) if gradient else forward).lower(q, k, v, ids).compile()
    return lambda: jax.block_until_ready(compiled(q, k, v, ids))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    uneven = np.random.default_rng(0).integers(900, 1700, 16).tolist()
    rows = {
        "16 x 1,280": ([1280] * 16, 20480),
        "16 x 1,280 and 20,480 of padding": ([1280] * 16, 40960),
        f"16 of 900 to 1,700, {sum(uneven):,} in all": (uneven, sum(uneven)),
        "4 x 4,096": ([4096] * 4, 16384),
    }
    print(f"{os.cpu_count()} cores, jax {jax.__version__}, {options.dtype}\n")
    print("| clips | keys | | packed, ms | one by one, ms | ratio |\n|---|---|---|---|---|---|")
    for name, (lengths, N) in rows.items():
        for keys in ("self", "text"):
            kv_lengths = lengths if keys == "self" else [TOKENS] * len(lengths)
            M = N if keys == "self" else TOKENS * len(lengths)
            for gradient in (False, True):
                packed = compile_call(lengths, kv_lengths, (N, M), options.dtype, gradient)
                pairs = list(zip(lengths, kv_lengths, strict=True))
                alone = {
                    pair: compile_call(pair[:1], pair[1:], pair, options.dtype, gradient) for pair in set(pairs)
                }
                seconds = []
                for _ in range(1 + options.rounds):  # the first warms up
                    start = time.perf_counter()
                    packed()
                    middle = time.perf_counter()
                    for pair in pairs:
                        alone[pair]()
                    seconds.append((middle - start, time.perf_counter() - middle))
                whole, parts = (statistics.median(1000 * s[i] for s in seconds[1:]) for i in range(2))
                ratio = statistics.median(a / b for a, b in seconds[1:])
                kind = "gradient" if gradient else "forward"
                print(f"| {name} | {keys} | {kind} | {whole:.0f} | {parts:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        main()
