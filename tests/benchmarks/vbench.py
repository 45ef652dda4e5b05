"""Throughput and memory of VBench's networks on frames of 480p, with random weights.

    python tests/benchmarks/vbench.py [--size=832x480] [--frames=81] [--networks=dino,raft] [--rows=N]
    python tests/benchmarks/vbench.py --tpu=v5e:2x2

One line for each network, each in a process of its own: seconds of the first batch, which compiles; seconds by the
clock and of all cores for a frame or a pair of frames; how many of them a video has, and its seconds of all
cores; the peak of memory. With --tpu: the memory on each chip of a TPU that need not be here.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

NETWORKS = ("dino", "clip-b32", "clip-l14", "musiq", "viclip", "amt", "raft")
FPS = 16  # of the video, for the frames that the dynamic degree looks at


def calls(frames: int) -> dict[str, int]:
    """How often each network runs for a video: frames, or pairs of frames."""
    chosen = -(-frames // max(1, round(FPS / 8)))
    return dict.fromkeys(NETWORKS, frames) | {"viclip": 8, "amt": (frames - 1) // 2, "raft": chosen - 1}


def network(name: str):
    """(module class, settings, jitted function, number of arrays of frames that it takes)."""
    from sora_jax.config.schema import ImageSettings
    from sora_jax.evaluate.vbench import networks
    from sora_jax.models.metric_backbones import Clip, ClipSettings
    from sora_jax.models.vbench.amt import Amt, AmtSettings
    from sora_jax.models.vbench.musiq import Musiq, MusiqSettings
    from sora_jax.models.vbench.raft import Raft, RaftSettings
    from sora_jax.models.vbench.vit import Dino, DinoSettings, Viclip, ViclipSettings

    large = ClipSettings(
        ImageSettings(1024, 16, 4096, 24, patch=14, size=224, dtype="float32"), 768, 12, 3072, 12, shared=768
    )
    return {
        "dino": (Dino, DinoSettings(), networks.dino_features, 1),
        "clip-b32": (Clip, ClipSettings(), networks.clip_features, 1),
        "clip-l14": (Clip, large, networks.clip_features, 1),
        "musiq": (Musiq, MusiqSettings(), networks.musiq_scores, 1),
        "viclip": (Viclip, ViclipSettings(), networks.viclip_features, 1),
        "amt": (Amt, AmtSettings(), networks.interpolation_errors, 3),
        "raft": (Raft, RaftSettings(), networks.long_vectors, 2),
    }[name]


def compile_for(name: str, topology: str, width: int, height: int, rows: int) -> float:
    """GiB of memory on each chip of a TPU."""
    import jax
    import numpy as np
    from jax.experimental import topologies

    from sora_jax.config.schema import MeshSettings
    from sora_jax.core.mesh import make_mesh
    from sora_jax.models.layers.params import abstract_params

    module_class, settings, function, inputs = network(name)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    with jax.set_mesh(make_mesh(MeshSettings(len(devices)), devices)):
        frames = jax.ShapeDtypeStruct((rows * len(devices), height, width, 3), np.uint8)
        params = abstract_params(module_class, settings)
        compiled = function.lower(settings, params, *[frames] * inputs).compile()
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return held / 2**30


def measure(name: str, width: int, height: int, rows: int) -> tuple[float, float, float]:
    """(seconds of the first batch, of the second one, of all cores for the second one)."""
    import jax
    import numpy as np

    from sora_jax.evaluate.vbench.dimensions import frames_mesh
    from sora_jax.models.layers.params import init_params

    module_class, settings, function, inputs = network(name)
    seconds = []
    with jax.set_mesh(frames_mesh()):
        params = init_params(module_class, settings, jax.random.key(0))
        draw = np.random.default_rng(0)
        frames = [draw.integers(0, 256, (rows, height, width, 3), np.uint8) for _ in range(inputs)]
        for _ in range(2):
            start, cores = time.perf_counter(), time.process_time()
            np.asarray(function(settings, params, *frames))
            seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1], time.process_time() - cores


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--rows", type=int, default=0, help="frames or pairs in a batch; 0: 8, or 1 of pairs")
    parser.add_argument("--tpu", default="", help="a topology: compile for it instead")
    parser.add_argument("--alone", default="")
    asked = parser.parse_args()
    width, height = map(int, asked.size.split("x"))
    if not asked.alone:
        print(
            f"{'network':10} {'first':>8} {'clock':>9} {'cores':>9} {'items':>6} {'video':>9} {'peak':>10}",
            flush=True,
        )
        for name in asked.networks.split(","):
            subprocess.run([sys.executable, *sys.argv, f"--alone={name}"], check=True, env=os.environ)
        return
    rows = asked.rows or {"amt": 1, "raft": 1}.get(asked.alone, 8)
    if asked.tpu:
        print(f"{asked.alone:10} {compile_for(asked.alone, asked.tpu, width, height, rows):7.2f}GiB", flush=True)
        return
    first, second, cores = measure(asked.alone, width, height, rows)
    peak, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, calls(asked.frames)[asked.alone]
    times = f"{first:7.1f}s {second / rows:8.2f}s {cores / rows:8.2f}s {count:6} {count * cores / rows:8.0f}s"
    print(f"{asked.alone:10} {times} {peak:7.1f}GiB", flush=True)


if __name__ == "__main__":
    main()
