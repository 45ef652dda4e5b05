"""Peak memory of decoding a short and a long video on the CPU, from latents to an mp4: it must not grow with time.

Run: python tests/benchmarks/autoencoder_rss.py [--seconds 5 60] [--width 16]
Prints a Markdown table: the most resident memory that the decoding process ever had.
"""

import argparse
import multiprocessing
import os
import pathlib
import resource
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

import jax
import numpy as np

from sora_jax.config.schema import AutoencoderSettings
from sora_jax.generate.output.writer import VideoWriter
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.autoencoder.streaming import decode_stream
from sora_jax.models.layers.params import init_params

FPS, SIDE = 16, 256


def decode(seconds: int, width: int, results):
    """Decode random latents into a file; put (frames, bytes of the file, peak MiB, time) into `results`."""
    settings = AutoencoderSettings(width=width, decoder_width=width, dtype="float32")
    params = jax.jit(lambda key: init_params(Autoencoder, settings, key))(jax.random.key(0))
    frames = 1 + FPS * seconds
    side = SIDE // settings.spatial_stride
    rng = np.random.default_rng(0)
    latents = (
        rng.standard_normal((side, side, settings.latent_channels), np.float32)
        for _ in range(1 + (frames - 1) // settings.temporal_stride)
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "video.mp4"
        with VideoWriter(path, float(FPS)) as video:
            for made in decode_stream(params, settings, latents):
                video.write(made)
        size = path.stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.put((frames, size, peak, time.perf_counter() - start))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, nargs="+", default=[5, 60])
    parser.add_argument("--width", type=int, default=16)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")  # a process of its own, so a peak of its own
    print(f"| seconds of {SIDE}x{SIDE} | frames | peak MiB | took s |\n|---|---|---|---|")
    for seconds in options.seconds:
        results = context.Queue()
        process = context.Process(target=decode, args=(seconds, options.width, results))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
        frames, _, peak, took = results.get()
        print(f"| {seconds} | {frames} | {peak:.0f} | {took:.0f} |", flush=True)


if __name__ == "__main__":
    main()
