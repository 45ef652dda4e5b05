"""Time our autoencoder against diffusers' AutoencoderKLWan: the same weights, the same machine, taking turns.

Run on a quiet machine: python tests/benchmarks/autoencoder.py [--case=wan21] [--rounds=5]   (needs
sora_jax[parity])
17 frames of 128x128, base width 32, float32. Prints seconds (median and range) of each and the ratio.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
TESTS = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "parity")]

import dataclasses

import jax
import numpy as np
import torch
from diffusers_autoencoder import decode_theirs, encode_theirs, make_theirs
from wan_cases import CASES, autoencoder_params

from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import bind

FRAMES, SIDE, WIDTH = 17, 128, 32


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=list(CASES), default="wan21")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    channels = {"wan21": 16, "wan22": 48}[options.case]
    settings = dataclasses.replace(CASES[options.case], width=WIDTH, decoder_width=WIDTH, latent_channels=channels)
    model, params = make_theirs(settings), jax.device_put(autoencoder_params(settings))
    video = np.random.default_rng(0).uniform(-1, 1, (1, FRAMES, SIDE, SIDE, 3)).astype(np.float32)
    encode = jax.jit(lambda params, video: bind(Autoencoder, settings, params).encode(video)[0])
    decode = jax.jit(lambda params, latents: bind(Autoencoder, settings, params).decode(latents))
    latents = np.asarray(encode(params, video))
    calls = {
        "ours": {
            "encode": lambda: np.asarray(encode(params, video)),
            "decode": lambda: np.asarray(decode(params, latents)),
        },
        "diffusers": {
            "encode": lambda: encode_theirs(model, video)[0],
            "decode": lambda: decode_theirs(model, latents),
        },
    }
    for verb in ("encode", "decode"):  # also warms both up
        error = np.abs(np.clip(calls["ours"][verb](), -1, 1) - np.clip(calls["diffusers"][verb](), -1, 1)).max()
        print(f"{verb}: outputs differ by at most {error:.1e}")
    seconds = {(who, verb): [] for who in calls for verb in calls[who]}
    for _ in range(options.rounds):
        for verb in ("encode", "decode"):
            for who in calls:
                seconds[who, verb].append(timed(calls[who][verb])[0])
    cores, threads, load = os.cpu_count(), torch.get_num_threads(), os.getloadavg()[0]
    print(
        f"{options.case}, {cores} cores, torch {torch.__version__} with {threads} threads, jax {jax.__version__}"
    )
    print(f"load at the end {load:.1f}, of which about {cores} is this run's own")
    for who in calls:
        total = [sum(pair) for pair in zip(seconds[who, "encode"], seconds[who, "decode"], strict=True)]
        parts = ", ".join(f"{verb} {statistics.median(seconds[who, verb]):.3f}" for verb in ("encode", "decode"))
        print(f"{who:>9}: {statistics.median(total):.3f} s ({min(total):.3f} to {max(total):.3f}); {parts}")
        seconds[who] = statistics.median(total)
    print(f"ratio ours / diffusers: {seconds['ours'] / seconds['diffusers']:.2f}")


if __name__ == "__main__":
    main()
