"""Time our transformer against diffusers' WanTransformer3DModel in torch eager: one machine, taking turns.

Run on a quiet machine: python tests/benchmarks/transformer.py [--rounds=3] [--only=bfloat16-step]   (needs
sora_jax[parity]).
Width 768, 12 layers, 12 heads, latents 9 x 32 x 32 (2,304 patches), 128 text tokens; forward, and a training step
(forward, backward, AdamW). In bfloat16 theirs has its weights in it, as ours has for a forward pass, by which it
samples (`--dtype=bfloat16`); it trains with weights in float32.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
TESTS = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "parity")]

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from diffusers_wan import build_transformer, with_random_weights
from wan_cases import foreign_params

from sora_jax.config.schema import MeshSettings, TransformerSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.core.patches import PatchBatch, grid_positions, patchify, unpatchify
from sora_jax.interop.wan.tables import transformer_table
from sora_jax.models.dit import DiT
from sora_jax.models.layers.params import bind

SETTINGS = TransformerSettings(text_width=768, width=768, heads=12, mlp=3072, layers=12, remat="none", unroll=12)
FRAMES, SIDE, TOKENS, TIME, RATE = 9, 32, 128, 0.5, 1e-5


def ours(settings, params, latents, text):
    """(forward, step), each without arguments; step changes weights that it keeps."""
    positions = grid_positions((FRAMES, SIDE // 2, SIDE // 2))[None]
    N = positions.shape[1]
    batch = PatchBatch(
        patches=None,
        positions=positions,
        segment_ids=np.ones((1, N), np.int32),
        conditioning_mask=None,
        text=text,
        text_segment_ids=np.ones((1, TOKENS), np.int32),
    )
    times, time_index = np.full((1, 1), TIME, np.float32), np.zeros((1, N), np.int32)
    patches = patchify(latents, settings.patch)
    optimizer = optax.adamw(RATE)

    def velocity(params, patches):
        return bind(DiT, settings, params)(batch, patches, times, time_index)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state):
        grads = jax.grad(lambda params: jnp.mean(jnp.square(velocity(params, patches))))(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    forward = jax.jit(velocity)
    held = jax.tree.map(lambda x: x.astype(settings.dtype), params)
    kept = [jax.tree.map(jnp.copy, params), optimizer.init(params)]

    def step():
        kept[:] = jax.block_until_ready(update(*kept))

    return lambda: unpatchify(np.asarray(forward(held, patches)), (FRAMES, SIDE // 2, SIDE // 2), (1, 2, 2)), step


def theirs(settings, latents, text, dtype):
    """The same of diffusers."""
    model = with_random_weights(build_transformer(settings)).to(dtype)
    x, text = (torch.from_numpy(a).to(dtype) for a in (np.moveaxis(latents, -1, 1).copy(), text))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)

    def velocity():
        return model(x, torch.tensor([1000 * TIME]), text).sample

    def forward():
        with torch.no_grad():
            return velocity().float().movedim(1, -1).numpy()

    def step():
        optimizer.zero_grad()
        velocity().float().square().mean().backward()
        optimizer.step()

    return forward, step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parts = [f"{dtype}-{name}" for dtype in ("float32", "bfloat16") for name in ("forward", "step")]
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    latents = random.standard_normal((1, FRAMES, SIDE, SIDE, SETTINGS.channels)).astype(np.float32)
    text = random.standard_normal((1, TOKENS, SETTINGS.text_width)).astype(np.float32)
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, jax {jax.__version__}\n")
    print("| | ours, s | diffusers, s | ratio |\n|---|---|---|---|")
    for dtype in sorted({part.split("-")[0] for part in options.only}, reverse=True):
        settings = dataclasses.replace(SETTINGS, dtype=dtype)
        params = jax.device_put(foreign_params(DiT, transformer_table(settings), settings))
        calls = {
            "ours": ours(settings, params, latents, text),
            "diffusers": theirs(settings, latents, text, getattr(torch, dtype)),
        }
        error = np.abs(calls["ours"][0]() - calls["diffusers"][0]()).max()
        for number, name in enumerate(("forward", "step")):
            if f"{dtype}-{name}" not in options.only:
                continue
            seconds = {who: [] for who in calls}
            for _ in range(1 + options.rounds):  # the first compiles and warms up
                for who, pair in calls.items():
                    start = time.perf_counter()
                    pair[number]()
                    seconds[who].append(time.perf_counter() - start)
            our, their = (statistics.median(seconds[who][1:]) for who in calls)
            note = f" (differ by {error:.0e})" if name == "forward" else ""
            print(f"| {dtype} {name}{note} | {our:.2f} | {their:.2f} | {our / their:.2f} |", flush=True)


if __name__ == "__main__":
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        main()
