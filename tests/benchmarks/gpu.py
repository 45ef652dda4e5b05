"""Time attention and training steps of the 1.3B preset on one GPU, and diffusers' model in torch beside them.

Run where nothing else does: python tests/benchmarks/gpu.py [--layers=30] [--grid=21x30x52] [--out=gpu]
(needs sora_jax[cuda], and diffusers 0.42.1 with a CUDA build of torch 2.13). One after the other, each in a
process of its own, for each takes the memory of the whole GPU.

Attention of one layer, forward and with its gradient: of one clip, and of as many patches in 16 clips, in three
forms: cuDNN's packed layout, one row for each clip padded to the longest, and our chunks. MFU counts the pairs of
patches of one clip, and a gradient as twice the forward pass.

Steps: both get one row of 832 x 480 pixels and 81 frames,
32,760 patches, and the embedding of a text of 512 tokens; noise and time are drawn anew. Ours is the step that
`train` runs: weights, their average and AdamW's moments in float32, bfloat16 compute, segments. Theirs has weights
and moments in bfloat16, no average, no segments, and nothing computed again; where the memory is too small for it,
cut --layers for both. Written into --out: a profile of our last steps and its top operations.
On a CPU it runs too, with our chunks alone: --layers=1 --grid=1x8x8 --steps=2 [--only=attention].
"""

import argparse
import functools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time

TESTS = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "parity")]

from sora_jax.cluster.join import GPU_MEMORY_FRACTION

TOKENS = 512
SHARES = (5, 12, 7, 9, 8, 11, 6, 10, 9, 7, 12, 5, 8, 10, 6, 11)  # of the clips in a packed sequence


def settings_for(options):
    from test_configs import CONFIGS, load

    config = next(path for path in CONFIGS if path.stem == "t2v_1_3b")
    keys = {
        "data.batch": 1,
        "data.embeddings": True,
        "data.clips_per_sequence": 1,
        "data.sequence_length": math.prod(options.grid),
        "data.text_length": TOKENS,
        "mesh.fsdp": 1,
        "mesh.ulysses": 1,
        "train.accumulate": 1,
        "transformer.layers": options.layers,
        "transformer.remat": options.remat,
    }
    return load(config, *(f"--config.{key}={value}" for key, value in keys.items()))


def ours(options):
    import jax
    import numpy as np
    import rich.console

    from sora_jax.core.mesh import make_mesh
    from sora_jax.core.patches import grid_positions
    from sora_jax.plan.programs import abstract_batch
    from sora_jax.train.monitoring.flops import PEAK_FLOPS, train_flops
    from sora_jax.train.monitoring.profiler import Profiler
    from sora_jax.train.objectives.registry import make_objective
    from sora_jax.train.optimizer import make_optimizer
    from sora_jax.train.state import init_state
    from sora_jax.train.step import make_step

    settings, device, random = settings_for(options), jax.devices()[0], np.random.default_rng(0)
    objective = make_objective(settings)
    optimizer = make_optimizer(settings.optimizer, settings.train.steps)
    step = make_step(objective, optimizer, settings)
    profiler = Profiler(options.out, f"{options.steps - 1}:{options.steps}", 1, rich.console.Console(stderr=True))
    with jax.set_mesh(make_mesh(settings.mesh, [device])):
        types = abstract_batch(settings)
        batch = types.replace(
            patches=random.normal(size=types.patches.shape).astype(types.patches.dtype),
            positions=grid_positions(options.grid)[None].astype(np.int32),
            segment_ids=np.ones(types.segment_ids.shape, np.int32),
            conditioning_mask=np.zeros(types.conditioning_mask.shape, bool),
            text=random.normal(size=types.text.shape).astype(types.text.dtype),
            text_segment_ids=np.ones(types.text_segment_ids.shape, np.int32),
        )
        flops, state = train_flops(settings, batch), init_state(objective, optimizer, jax.random.key(0))
        batch, seconds = objective.place(batch), []
        for n in range(options.steps + 1):  # the first compiles
            profiler.before(n)
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(step(state, {}, batch))
            seconds.append(time.perf_counter() - start)
            profiler.after(n, state, last=n == options.steps)
        assert np.isfinite(metrics["loss"])
    # A step that is traced is slower: the two last don't count.
    fastest, peak = statistics.median(seconds[1:-2] or seconds[1:]), PEAK_FLOPS.get(device.device_kind)
    return {
        "device": device.device_kind,
        "seconds": fastest,
        "compiled in": seconds[0],
        "peak GiB": (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30,
        "TFLOP/s": flops / fastest / 1e12,
        "MFU": peak and flops / fastest / peak,
    }


def attend_padded(q, k, v, lengths, kernel):
    """Attention of the clips of a packed sequence [1, N, A, K], as rows padded to the longest clip."""
    import jax.numpy as jnp
    import numpy as np

    from sora_jax.kernels.attention import attention

    n = max(lengths)
    starts = np.cumsum([0, *lengths[:-1]])[:, None]
    inside = np.arange(n) < np.array(lengths)[:, None]
    places = np.where(inside, starts + np.arange(n), q.shape[1])
    rows = [jnp.take(x[0], places, axis=0, mode="fill", fill_value=0) for x in (q, k, v)]
    ids = inside.astype(np.int32)
    y = attention(*rows, ids, ids, kernel=kernel, clips=1)
    return jnp.zeros_like(q).at[0, places].set(y, mode="drop")


def attention_forms(lengths):
    """By name, attention(q, k, v) of one packed sequence of these clips: on a CPU with our chunks alone."""
    import numpy as np

    from sora_jax.core.mesh import platform
    from sora_jax.kernels.attention import attention

    ids = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)[None]
    kernels = ["chunked", "cudnn"] if platform() == "gpu" else ["chunked"]
    packed = functools.partial(attention, q_segment_ids=ids, kv_segment_ids=ids, clips=len(lengths))
    forms = {f"{kernel}, packed": functools.partial(packed, kernel=kernel) for kernel in kernels}
    if len(lengths) > 1:
        for kernel in kernels:
            forms[f"{kernel}, padded"] = functools.partial(attend_padded, lengths=lengths, kernel=kernel)
    return forms


def attention_times(options):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sora_jax.core.mesh import make_mesh
    from sora_jax.train.monitoring.flops import PEAK_FLOPS

    settings, device, found = settings_for(options), jax.devices()[0], []
    A, N = settings.transformer.heads, math.prod(options.grid)
    K, dtype = settings.transformer.width // A, settings.transformer.dtype
    ends = np.round(np.cumsum(SHARES) / np.sum(SHARES) * N).astype(int)
    peak = PEAK_FLOPS.get(device.device_kind)
    with jax.set_mesh(make_mesh(settings.mesh, [device])):
        q, k, v, dy = jax.random.normal(jax.random.key(0), (4, 1, N, A, K), dtype)
        for lengths in ([N], np.diff(ends, prepend=0).tolist()):
            for form, attend in attention_forms(lengths).items():
                for passes, function in ((1, attend), (3, lambda *x, f=attend: jax.vjp(f, *x)[1](dy))):
                    compiled, seconds = jax.jit(function).lower(q, k, v).compile(), []
                    for _ in range(options.steps + 1):  # the first warms up
                        start = time.perf_counter()
                        y = jax.block_until_ready(compiled(q, k, v))
                        seconds.append(time.perf_counter() - start)
                    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(y))
                    median = statistics.median(seconds[1:])
                    rate = passes * 4 * A * K * sum(n * n for n in lengths) / median
                    of = {"clips": len(lengths), "form": form, "gradient": passes > 1, "seconds": median}
                    found.append(of | {"TFLOP/s": rate / 1e12, "MFU": peak and rate / peak})
    return {"device": device.device_kind, "attention": found}


def diffusers(options):
    import torch
    from diffusers_wan import build_transformer

    model_settings = settings_for(options).transformer
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = build_transformer(model_settings).to(device, torch.bfloat16).train()
    velocity = torch.compile(model) if device == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")
    frames, rows, columns = options.grid
    shape = (1, model_settings.channels, frames, 2 * rows, 2 * columns)
    data = torch.randn(shape, device=device, dtype=torch.bfloat16)
    text = torch.randn((1, TOKENS, model_settings.text_width), device=device, dtype=torch.bfloat16)

    def step():
        noise, t = torch.randn_like(data), torch.rand(1, device=device)
        noisy = ((1 - t) * data + t * noise).to(torch.bfloat16)
        optimizer.zero_grad()
        error = velocity(noisy, 1000 * t, text).sample.float() - (noise - data).float()
        error.square().mean().backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return {"seconds": statistics.median(seconds[1:]), "compiled in": seconds[0], "peak GiB": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--grid", default="21x30x52", type=lambda text: tuple(map(int, text.split("x"))))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--remat", default="save_products")
    parser.add_argument("--out", default="gpu", type=pathlib.Path, help="folder for the profile")
    parts = {"attention": attention_times, "ours": ours, "diffusers": diffusers}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="what to time")
    parser.add_argument("--only", choices=parts, help="time this in this process, and print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(parts[options.only](options)))
        return
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(GPU_MEMORY_FRACTION)} | os.environ
    found = {}
    for part in options.parts:
        command = [sys.executable, __file__, *sys.argv[1:], f"--only={part}"]
        told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if told.returncode:
            sys.exit(f"{part}: failed; what it says is above")
        found[part] = json.loads(told.stdout.splitlines()[-1])
    if "attention" in found:
        report_attention(options, found.pop("attention"))
    if found:
        report_steps(options, found)


def report_attention(options, found):
    print(f"\n{found['device']}, attention of one layer, {math.prod(options.grid):,} patches\n")
    print("| clips | form | | ms | TFLOP/s | MFU |\n|---|---|---|---|---|---|")
    for of in found["attention"]:
        passes = "forward and gradient" if of["gradient"] else "forward"
        mfu = f"{of['MFU']:.1%}" if of["MFU"] else ""
        speed = f"{1000 * of['seconds']:.2f} | {of['TFLOP/s']:.2f}"
        print(f"| {of['clips']} | {of['form']} | {passes} | {speed} | {mfu} |")


def report_steps(options, found):
    patches = math.prod(options.grid)
    device = found.get("ours", {}).get("device", "")
    print(f"\n{device}, a training step, {options.layers} layers, {patches:,} patches, remat {options.remat}\n")
    print("| | s a step | patches/s | peak GiB | first step, s |\n|---|---|---|---|---|")
    for who, of in found.items():
        speed, memory = f"{patches / of['seconds']:,.0f}", f"{of['peak GiB']:.1f}"
        print(f"| {who} | {of['seconds']:.3f} | {speed} | {memory} | {of['compiled in']:.0f} |")
    if "ours" not in found:
        return
    our = found["ours"]
    mfu = f", MFU {our['MFU']:.1%}" if our["MFU"] else ""
    print(f"\nours: {our['TFLOP/s']:.2f} TFLOP/s of the model's own{mfu}")
    if "diffusers" in found:
        print(f"{found['diffusers']['seconds'] / our['seconds']:.2f} times diffusers' speed")


if __name__ == "__main__":
    main()
