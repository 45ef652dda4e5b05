"""How fast packed rows are read, beside raw random reads of the same records, and beside what a train step eats.

Run: python tests/benchmarks/data.py           (two minutes; most of it compiles the step of configs/shapes.py)
     python tests/benchmarks/data.py --no-step  (seconds)
Writes two data sets of random latents, of the shapes world's size and of 81 frames at 480p, and reads each at
random, by the same number of threads: records as bytes, with ArrayRecord's own reader, and as packed batches.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import runpy
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import jax
import ml_dtypes
import numpy as np
import rich.console
import rich.table
from array_record.python.array_record_data_source import ArrayRecordDataSource

from sora_jax.config.load import from_config
from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh, place
from sora_jax.data.loader.stream import train_sequences
from sora_jax.data.records.records import Clip
from sora_jax.data.records.write import finish, write_shard
from sora_jax.data.tokenizer import train_tokenizer
from sora_jax.train.objectives.registry import make_objective
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import init_state
from sora_jax.train.step import make_step

CAPTION = "a small red circle moves left on a blue background"
ROUNDS = 5


def write_latents(out: pathlib.Path, shape: tuple, count: int, settings):
    """A data set of `count` clips, in eight shards."""
    out.mkdir()
    tokens = len(train_tokenizer([CAPTION], out / "tokenizer.model", vocabulary=600).encode(CAPTION))
    draw, arrays, shards = np.random.default_rng(0), {"latents": (None, None, None, shape[-1])}, []
    stride, side = settings.autoencoder.temporal_stride, settings.autoencoder.spatial_stride
    frames, height, width = (shape[0] - 1) * stride + 1, shape[1] * side, shape[2] * side
    for shard in range(8):
        clips = [
            Clip("train", f"{shard}-{i}", 0.0, 1.0, 16.0, frames, height, width, shape, (CAPTION,), (tokens,))
            for i in range(count // 8)
        ]
        made = ((clip, {"latents": draw.normal(size=shape).astype(ml_dtypes.bfloat16)}) for clip in clips)
        shards.append((out / f"{shard}", *write_shard(out / f"{shard}", arrays, made)))
    finish(out, arrays, {"train": shards}, {"kind": "latents", "generation": 1}, {})


def measure(settings, batches: int):
    """(bytes a second raw, bytes a second in batches, patches a second), of each the median of some rounds."""
    stream, data = train_sequences(settings), settings.data
    source = ArrayRecordDataSource(
        [str(path) for path in sorted(pathlib.Path(data.path).glob("*.array_record-*"))]
    )
    size = len(source[0])  # of every record
    draw = np.random.default_rng(0)

    def raw(count):
        numbers = np.concatenate([draw.permutation(len(source)) for _ in range(-(-count // len(source)))])[:count]
        with ThreadPoolExecutor(data.threads) as pool:
            for _ in pool.map(lambda some: [source[i] for i in some], np.array_split(numbers, batches)):
                pass

    def packed():
        clips = patches = 0
        with contextlib.closing(stream.iterate()) as made:
            for _ in range(batches):
                segment_ids = next(made).segment_ids
                clips += int(segment_ids.max(axis=1).sum())
                patches += int(np.count_nonzero(segment_ids))
        return clips, patches

    clips, patches = packed()
    raw(clips)
    rates = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        raw(clips)
        between = time.perf_counter()
        packed()
        ended = time.perf_counter()
        rates.append(
            (clips * size / (between - begun), clips * size / (ended - between), patches / (ended - between))
        )
    return np.median(rates, axis=0)


def step_eats(settings) -> float:
    """Patches a second of the train step on one device."""
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        objective = make_objective(settings)
        optimizer = make_optimizer(settings.optimizer, settings.train.steps)
        state, step = (
            init_state(objective, optimizer, jax.random.key(0)),
            make_step(objective, optimizer, settings),
        )
        batch = train_sequences(settings).batch_at(0)
        units, _ = objective.work(batch)
        placed = place(batch, objective.axes)
        seconds = []
        for _ in range(4):
            begun = time.perf_counter()
            state, metrics = step(state, {}, placed)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - begun)
    return units / min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-step", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="default: the config's")
    options = parser.parse_args()
    console = rich.console.Console(width=115)
    shapes = from_config(runpy.run_path(str(ROOT / "configs/shapes.py"))["get_config"]())
    large = from_config(runpy.run_path(str(ROOT / "configs/t2v_1_3b.py"))["get_config"]())
    table = rich.table.Table("latents", "MB a record", "raw, MB/s", "in rows, MB/s", "share", "patches/s")
    with tempfile.TemporaryDirectory() as folder:
        for name, settings, shape, count, batches in (
            ("shapes", shapes, (9, 8, 8, shapes.autoencoder.latent_channels), 2000, 100),
            ("480p", large, (21, 60, 104, 16), 48, 12),
        ):
            out = pathlib.Path(folder) / name
            write_latents(out, shape, count, settings)
            data = {"path": str(out), "batch": settings.data.batch if name == "shapes" else 4}
            if options.threads:
                data["threads"] = options.threads
            settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, **data))
            raw, rows, patches = measure(settings, batches)
            size = np.prod(shape) * 2 / 1e6
            table.add_row(
                name,
                f"{size:.3f}",
                f"{raw / 1e6:,.0f}",
                f"{rows / 1e6:,.0f}",
                f"{rows / raw:.0%}",
                f"{patches:,.0f}",
            )
            if name == "shapes" and not options.no_step:
                eaten = step_eats(settings)
                times = f"{patches / eaten:.0f} times as fast"
                console.print(
                    f"configs/shapes.py eats {eaten:,.0f} patches/s, rows are read {times}", highlight=False
                )
    console.print(table)


if __name__ == "__main__":
    main()
