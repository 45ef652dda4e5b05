"""The benchmark `loss`: validation loss at fixed times, with fixed noise, on held-out clips."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sora_jax.checkpoint.frozen_params import restore_model
from sora_jax.checkpoint.model_folder import load_model
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.config.training import CONDITIONING_TASKS
from sora_jax.core.mesh import local_rows, place, spec
from sora_jax.core.patches import PatchBatch
from sora_jax.core.progress import progress_bar
from sora_jax.core.random_keys import Purpose, purpose_key, seed_key
from sora_jax.data.loader.conditioning_masks import conditioning_tasks, draw_conditioning_masks, drawn_task
from sora_jax.data.loader.mixture import Mixture
from sora_jax.data.loader.stream import validation_sequences
from sora_jax.diffusion.flow import flow_errors
from sora_jax.evaluate.benchmark import Benchmark, Options, Sample, side_by_side, terminal_table
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.encode_packed import encode_packed, place_packed
from sora_jax.models.layers.params import bind
from sora_jax.models.video_model import trained_model
from sora_jax.report.page import Section, Table

GROUPS = {"by_time": "time", "by_size": "size", "by_frames": "frames", "by_task": "given"}
TIMES = tuple((n + 0.5) / 10 for n in range(10))


@functools.partial(jax.jit, static_argnums=0)
def errors_at(settings: Settings, params: dict, batch: PatchBatch, key, t):
    """(squared error of the velocity at one time, 1 where it counts), both [B, N] float32."""
    model = bind(trained_model(settings), settings, params)
    embedded = model.embed_text(batch)
    noise = jax.random.normal(key, batch.patches.shape, out_sharding=spec("batch tokens ."))
    times = jnp.full(
        (len(batch.segment_ids), settings.data.clips_per_sequence), t, jnp.float32, out_sharding=spec("batch .")
    )
    velocity = functools.partial(model.velocity, embedded)
    return flow_errors(velocity, batch, noise, times, conditioning_time=settings.masks.noise)


def validation_losses(
    settings: Settings, params: dict, batches: Iterable[PatchBatch], advance, *, encode=None
) -> dict:
    """Mean loss by time, by size, by length, and by conditioning task.

    All clips are measured as text to video. If the model was trained on other conditioning tasks, clips of several
    frames are measured once more, each with one of these tasks, drawn evenly; only by_task includes these.

    Args:
      params: of the `trained_model`, on the current mesh.
      batches: this process's packed sequences (numpy), in a fixed order.
      advance: called after each batch and time.
      encode: batch of pixels -> batch of patches.
    Returns: {"loss": mean over all, "by_time": {"0.05": ...}, "by_size": {"64x64": ...}, "by_frames": {"17": ...},
      "by_task": {"text": ..., "first_frame": ...}, "clips": their number, "each": (sum of errors, their number) of
      each clip}.
    """
    means, each, tasks = _Means(), _Means(), given_tasks(settings)
    rows = local_rows(jax.sharding.get_mesh(), settings.data.batch)
    clips = 0
    for number, batch in enumerate(batches):
        first = number * settings.data.batch
        placed = place_packed(batch)
        if batch.pixels is not None:
            placed = encode(placed)
        segment_ids, positions = multihost_utils.process_allgather(
            (placed.segment_ids, placed.positions), tiled=True
        )
        kinds = clip_kinds(settings, segment_ids, positions)
        clips += len(kinds)
        rounds = [(placed, _groups_of_all)]
        if tasks:
            conditioning_mask = draw_conditioning_masks(
                batch, [first + row for row in rows], tasks
            ).conditioning_mask
            masked = placed.replace(conditioning_mask=place(conditioning_mask, "batch tokens"))
            rounds.append((masked, functools.partial(_groups_of_given, tasks, first)))
        key = purpose_key(seed_key(0), Purpose.VALIDATION, number)
        for t in TIMES:
            for placed, groups_of in rounds:
                found = errors_at(settings, params, placed, key, jnp.float32(t))
                errors, counted = multihost_utils.process_allgather(found, tiled=True)
                for clip in kinds:
                    mine = segment_ids[clip.row] == clip.segment
                    groups = groups_of(clip, t)
                    if ("loss",) in groups:
                        each.add(
                            [("clip", number, clip.row, clip.segment)],
                            errors[clip.row][mine],
                            counted[clip.row][mine],
                        )
                    means.add(groups, errors[clip.row][mine], counted[clip.row][mine])
            advance()
    result: dict = {"clips": clips, "each": each.of("clip")}
    for (name, *key), mean in means.items():
        if key:
            result.setdefault(name, {})[key[0]] = mean
        else:
            result[name] = mean
    return result


class _Means:
    """Means of errors by group."""

    def __init__(self):
        self._sums, self._counts = collections.Counter(), collections.Counter()

    def add(self, groups, errors, counted):
        for group in groups:
            self._sums[group] += float(np.sum(errors))
            self._counts[group] += float(np.sum(counted))

    def of(self, name):
        """(sum, count) of each group whose key begins with a name, in the order in which they came."""
        return [(self._sums[group], self._counts[group]) for group in self._counts if group[0] == name]

    def items(self):
        return [(group, self._sums[group] / count) for group, count in self._counts.items() if count]


def _groups_of_all(clip, t):
    groups = [("loss",), ("by_time", f"{t:.2f}"), ("by_size", clip.size), ("by_frames", str(clip.frames))]
    return groups + [("by_task", "text")] * (clip.frames > 1)


def _groups_of_given(tasks, first, clip, t):
    return [("by_task", drawn_task(first + clip.row, clip.segment, tasks))] * (clip.frames > 1)


def given_tasks(settings: Settings) -> Settings | None:
    """The settings with equal weights for the trained conditioning tasks but text; None if there are none."""
    kinds = conditioning_tasks(settings.masks).keys() - {"text"}
    weights = dict.fromkeys(CONDITIONING_TASKS, 0.0) | dict.fromkeys(kinds, 1.0)
    if not kinds:
        return None
    masks: Any = weights | {"forcing": 0.0}
    return dataclasses.replace(settings, masks=dataclasses.replace(settings.masks, **masks))


class ClipKind(NamedTuple):
    """A clip of packed sequences: its place, its size as "WIDTHxHEIGHT" in pixels, and its frames."""

    row: int
    segment: int
    size: str
    frames: int


def clip_kinds(settings: Settings, segment_ids: np.ndarray, positions: np.ndarray) -> list[ClipKind]:
    """Every clip of packed sequences."""
    p_f, p_h, p_w = settings.transformer.patch
    stride, temporal = settings.autoencoder.spatial_stride, settings.autoencoder.temporal_stride
    kinds = []
    for row, of_row in enumerate(segment_ids):
        for segment in range(1, of_row.max() + 1):
            f, h, w = positions[row][of_row == segment].max(axis=0) + 1
            frames = (f * p_f - 1) * temporal + 1
            kinds.append(ClipKind(row, segment, f"{w * p_w * stride}x{h * p_h * stride}", int(frames)))
    return kinds


def _check(checkpoint: CheckpointUnderTest, options: Options):
    data = checkpoint.settings.data
    Mixture(options.data or data.path, data.kind, where="--data" if options.data else "data.path")


def _measure(checkpoint: CheckpointUnderTest, options: Options, console) -> dict:
    settings = checkpoint.settings
    data = options.data or settings.data.path
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, path=data))
    stream = validation_sequences(settings, rows=local_rows(jax.sharding.get_mesh(), settings.data.batch))
    params = restore_model(checkpoint.folder, checkpoint.step, settings, text=not settings.data.embeddings)
    with progress_bar(console) as bar:
        task = bar.add_task("validation loss", total=stream.batches * len(TIMES), numbers="")
        values = validation_losses(
            settings, params, stream.iterate(), lambda: bar.advance(task), encode=_encoder(checkpoint)
        )
    for key, name in GROUPS.items():
        if key in values:
            console.print(terminal_table((name, "loss"), list(values[key].items())))
    line = f"{checkpoint.name}: loss {values['loss']:.4f} on {values['clips']} held-out clips"
    console.print(line, highlight=False)
    return {"data": data, **values}


def _encoder(checkpoint):
    """Batch of pixels -> batch of patches, by the autoencoder of the workdir; None if the data are latents."""
    settings = checkpoint.settings
    if settings.data.kind == "latents":
        return None
    coder, params = load_model(checkpoint.workdir / "autoencoder", Autoencoder, AutoencoderSettings)
    encode = jax.jit(functools.partial(encode_packed, coder, patch=settings.transformer.patch))
    return functools.partial(encode, params)


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    losses = [
        f"{name} {v['loss']:.4f} on {v['clips']} held-out clips of {v['data']}" for name, v in results.items()
    ]
    tables = [Table((name, *results), side_by_side(results, key)) for key, name in GROUPS.items()]
    return [Section("Validation loss", f"{'; '.join(losses)}. Time 0 is data, 1 is noise.", tables)]


def _samples(values: dict) -> list[Sample]:
    return [
        Sample(f"{values['data']} {number}", {"loss": total / count}, weight=count)
        for number, (total, count) in enumerate(values.get("each", ()))
        if count
    ]


LOSS = Benchmark(("flow",), ("data",), _measure, _show, _check, samples=_samples, better={"loss": "lower"})
