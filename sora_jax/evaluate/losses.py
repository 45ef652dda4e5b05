"""Validation loss of a transformer: at fixed times, with fixed noise, on the held-out sources."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sora_jax.data.mix import Mix
from sora_jax.data.stream import validation_rows
from sora_jax.diffusion.flow import flow_errors
from sora_jax.evaluate.report import Section, Table
from sora_jax.evaluate.subject import Options, Subject, Suite, side_by_side, terminal_table
from sora_jax.mesh import local_rows, spec
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.encode_rows import encode_rows, place_rows
from sora_jax.models.module import bind
from sora_jax.models.video_model import trained_model
from sora_jax.patches import PatchBatch
from sora_jax.settings import AutoencoderSettings, Settings
from sora_jax.train.frozen import restore_model
from sora_jax.train.metrics import progress_bar
from sora_jax.weights.store import load_model

GROUPS = {"by_time": "time", "by_size": "size", "by_frames": "frames"}
TIMES = tuple((n + 0.5) / 10 for n in range(10))


@functools.partial(jax.jit, static_argnums=0)
def errors_at(settings: Settings, params: dict, batch: PatchBatch, key, t):
    """Squared error of the velocity of each patch at one time for all, [B, N] float32; 0 for padding."""
    model = bind(trained_model(settings), settings, params)
    embedded = model.embed_text(batch)
    noise = jax.random.normal(key, batch.patches.shape, out_sharding=spec("batch tokens ."))
    times = jnp.full((len(batch.segments), settings.data.row_clips), t, jnp.float32, out_sharding=spec("batch ."))
    velocity = functools.partial(model.velocity, embedded)
    return flow_errors(velocity, batch, noise, times)[0]


def validation_losses(
    settings: Settings, params: dict, batches: Iterable[PatchBatch], advance, *, encode=None
) -> dict:
    """Mean loss by time, by size and by length.

    Args:
      params: of the `trained_model`, on the current mesh.
      batches: this process's rows of packed batches (numpy), in a fixed order.
      advance: called with no argument after each batch and time.
      encode: makes the patches of a batch of pixels.
    Returns: {"loss": mean over all, "by_time": {"0.05": ...}, "by_size": {"64x64": ...}, "by_frames": {"17": ...},
      "clips": how many}.
    """
    sums, counts = collections.Counter(), collections.Counter()
    clips = 0
    for number, batch in enumerate(batches):
        placed = place_rows(batch)
        if batch.pixels is not None:
            placed = encode(placed)
        key = jax.random.fold_in(jax.random.key(0), number)
        segments, positions = multihost_utils.process_allgather((placed.segments, placed.positions), tiled=True)
        kinds = clip_kinds(settings, segments, positions)
        clips += len(kinds)
        for t in TIMES:
            errors = errors_at(settings, params, placed, key, jnp.float32(t))
            errors = multihost_utils.process_allgather(errors, tiled=True)
            for row, segment, size, frames in kinds:
                mine = errors[row][segments[row] == segment]
                for group in (("loss",), ("by_time", f"{t:.2f}"), ("by_size", size), ("by_frames", str(frames))):
                    sums[group] += float(np.sum(mine))
                    counts[group] += mine.size
            advance()
    means = {group: sums[group] / counts[group] for group in sums}
    result = {"loss": means.pop(("loss",)), "clips": clips}
    for name, key in means:
        result.setdefault(name, {})[key] = means[name, key]
    return result


def clip_kinds(settings: Settings, segments: np.ndarray, positions: np.ndarray) -> list[tuple]:
    """(row, segment, "WIDTHxHEIGHT" in pixels, frames) of every clip of packed rows."""
    p_f, p_h, p_w = settings.transformer.patch
    stride, temporal = settings.autoencoder.spatial_stride, settings.autoencoder.temporal_stride
    kinds = []
    for row, of_row in enumerate(segments):
        for segment in range(1, of_row.max() + 1):
            f, h, w = positions[row][of_row == segment].max(axis=0) + 1
            frames = (f * p_f - 1) * temporal + 1
            kinds.append((row, segment, f"{w * p_w * stride}x{h * p_h * stride}", int(frames)))
    return kinds


def _check(subject: Subject, options: Options):
    data = subject.settings.data
    Mix(options.data or data.path, data.kind, where="--data" if options.data else "data.path")


def _measure(subject: Subject, options: Options, console) -> dict:
    settings = subject.settings
    data = options.data or settings.data.path
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, path=data))
    stream = validation_rows(settings, rows=local_rows(jax.sharding.get_mesh(), settings.data.batch))
    params = restore_model(subject.folder, subject.step, settings, text=not settings.data.embeddings)
    with progress_bar(console) as bar:
        task = bar.add_task("validation loss", total=stream.batches * len(TIMES), numbers="")
        values = validation_losses(
            settings, params, stream.iterate(), lambda: bar.advance(task), encode=_encoder(subject)
        )
    for key, name in GROUPS.items():
        console.print(terminal_table((name, "loss"), list(values[key].items())))
    line = f"{subject.name}: loss {values['loss']:.4f} on {values['clips']} held-out clips"
    console.print(line, highlight=False)
    return {"data": data, **values}


def _encoder(subject):
    """Makes patches of a batch of pixels, by the autoencoder of the workdir; None if the data are latents."""
    settings = subject.settings
    if settings.data.kind == "latents":
        return None
    coder, params = load_model(subject.workdir / "autoencoder", Autoencoder, AutoencoderSettings)
    encode = jax.jit(functools.partial(encode_rows, coder, patch=settings.transformer.patch))
    return functools.partial(encode, params)


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    losses = [
        f"{name} {v['loss']:.4f} on {v['clips']} held-out clips of {v['data']}" for name, v in results.items()
    ]
    tables = [Table((name, *results), side_by_side(results, key)) for key, name in GROUPS.items()]
    return [Section("Validation loss", f"{'; '.join(losses)}. Time 0 is data, 1 is noise.", tables)]


LOSS = Suite(("flow",), ("data",), _measure, _show, _check)
