"""The training streams: batch s is a function of (seed, s), so a run resumes from its step alone.

A process makes only those rows of a global batch that its devices hold; the global batch is the same for any
number of processes.
"""

import dataclasses
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

import grain
import numpy as np

from sora_jax.config.schema import REFINE, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.patches import PatchBatch
from sora_jax.data.loader.conditioning_masks import check_frame_times, draw_conditioning_masks
from sora_jax.data.loader.crops import Crops
from sora_jax.data.loader.ghosts import add_ghosts
from sora_jax.data.loader.mixture import ClipOrder, Mixture
from sora_jax.data.loader.packing import PackPlan, Slot, clip_work, pack_in_order
from sora_jax.data.loader.pairs import PairedSequences
from sora_jax.data.loader.sequences import PackedSequences
from sora_jax.data.loader.shape_plan import ShapePlan

_FOREVER = sys.maxsize


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches by number, or in order from any step.

    batch_at: this host's part of batch s; a function of s alone.
    batches: number of batches; endless for training.
    clips: number of clips.
    fill: share of the patches that are not padding; 1 for crops.
    batches_per_epoch: mean number of batches in which each clip comes once.
    notes: remarks for the user, one line each.
    threads: number of threads that read ahead.
    sources_at: source files of the clips of the global batch of a step; for training streams.
    """

    batch_at: Callable[[int], PatchBatch | np.ndarray]
    batches: int
    clips: int
    fill: float
    batches_per_epoch: float
    notes: tuple[str, ...]
    threads: int
    sources_at: Callable[[int], list[str]] = lambda step: []

    def iterate(self, start: int = 0) -> Generator[Any, None, None]:
        """Batches start, start + 1, ...; threads read ahead until the iterator is closed or exhausted."""
        dataset = grain.MapDataset.range(start, self.batches).map(self.batch_at)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=2 * self.threads)
        iterator = iter(dataset.to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()


def train_sequences(settings: Settings, *, rows: Sequence[int] | None = None) -> Stream:
    """Packed sequences for the transformer, shuffled, without end: a PatchBatch of numpy arrays each.

    Args:
      settings: data.path names latents that `prepare` wrote; or pixels, if the step encodes them with
        data.autoencoder: then a batch holds pixels in place of patches, and all its clips have one shape.
      rows: which rows of every global batch to make; None: all.
    Raises: InputError if there is no such data set, a clip or caption is longer than a sequence, or ghosts are
      asked for with pixels.
    """
    clips = open_sequences(settings, "train")
    data = settings.data
    local = range(data.batch) if rows is None else rows
    check_frame_times(settings.masks, clips.longest)
    if settings.flow.ghosts and clips.kind == "pixels":
        raise InputError("config.flow.ghosts: needs latents; `prepare` with --autoencoder, or set it to 0")
    plan = plan_sequences(clips, settings)

    def batch_at(step):
        numbers = [step * data.batch + i for i in local]
        first = plan[step * data.batch][0].clip
        batch = clips.assemble([plan[i] for i in numbers], first, numbers)
        batch = draw_conditioning_masks(batch, numbers, settings)
        return add_ghosts(batch, numbers, settings)

    return Stream(
        batch_at=batch_at,
        batches=_FOREVER,
        clips=len(clips.patches),
        fill=plan.fill,
        batches_per_epoch=plan.sequences_per_epoch / data.batch,
        notes=clips.notes,
        threads=data.threads,
        sources_at=lambda step: clips.sources(
            slot.clip for i in range(data.batch) for slot in plan[step * data.batch + i]
        ),
    )


def open_sequences(settings: Settings, split: str) -> PackedSequences:
    """The clips of a split as the objective takes them: alone, or as pairs for a refiner."""
    return (PairedSequences if settings.objective == REFINE else PackedSequences)(settings, split)


def plan_sequences(clips: PackedSequences, settings: Settings) -> PackPlan | ShapePlan:
    """The clips of each training sequence, without end.

    Raises: InputError if a clip or caption is longer than a sequence.
    """
    data = settings.data
    sets, weights = sets_of(clips.records, np.arange(len(clips.patches))), clips.records.weights
    if clips.kind == "latents":
        order = ClipOrder(sets, weights, seed=data.shuffle_seed)
        return PackPlan(clips.patches, clips.tokens, data, clip_work(settings.transformer, clips.patches), order)
    return ShapePlan(clips.patches, clips.tokens, clips.groups(), sets, weights, data)


def validation_sequences(settings: Settings, *, rows: Sequence[int] | None = None) -> Stream:
    """The clips of the validation split, each once with its first caption, always in the same sequences.

    The last batch is filled up with empty sequences. Arguments and errors: as for `train_sequences`.
    """
    clips = open_sequences(settings, "validation")
    data = settings.data
    local = range(data.batch) if rows is None else rows
    lengths = np.array([lengths[0] for lengths in clips.tokens])
    held: list[tuple[Slot, ...]] = []
    for group, count in clips.groups():
        limits = dataclasses.replace(data, clips_per_sequence=count)
        packed = pack_in_order(clips.patches[group], lengths[group], limits)
        held += [tuple(Slot(int(group[i]), 0) for i in items) for items in packed]
        held += [()] * (-len(held) % data.batch)
    batches = len(held) // data.batch

    def batch_at(step):
        of_batch = held[step * data.batch : (step + 1) * data.batch]
        numbers = [step * data.batch + i for i in local]
        return clips.assemble([of_batch[i] for i in local], of_batch[0][0].clip, numbers)

    return Stream(
        batch_at=batch_at,
        batches=batches,
        clips=len(clips.patches),
        fill=float(clips.patches.sum() / (sum(map(bool, held)) * data.sequence_length)),
        batches_per_epoch=batches,
        notes=clips.notes,
        threads=data.threads,
    )


def train_crops(settings: Settings, *, rows: Sequence[int] | None = None) -> Stream:
    """Random crops of clips for the autoencoder, shuffled, without end: uint8 [B, F, H, W, 3].

    In a share data.image_share of the steps, the same number of frames comes as pictures, [B * F, 1, H, W, 3]:
    single frames of any clip that is large enough.

    Args:
      settings: data.path names pixels that `prepare` wrote; data.crop_frames and data.crop_size size the crops.
      rows: which rows of every global batch to make; None: all.
    Raises: InputError if there is no such data set, or no clip is as large as the crop.
    """
    crops = Crops(settings, "train")
    data = settings.data
    local = range(data.batch) if rows is None else rows

    draws, pictures = (
        ClipOrder(sets_of(crops.records, used), crops.records.weights, seed=data.shuffle_seed)
        for used in (crops.clips, crops.pictures)
    )

    def drawn_at(step, rows):
        """(clip, position of the crop, its frames or None) of each crop."""
        if np.random.default_rng((data.shuffle_seed, step, 2)).random() < data.image_share:
            for number in (i * data.crop_frames + frame for i in rows for frame in range(data.crop_frames)):
                draw = np.random.default_rng((data.shuffle_seed, step, number, 3))
                yield pictures.any(draw), draw.random(3), 1
            return
        for i in rows:
            number = step * data.batch + i
            share = np.random.default_rng((data.shuffle_seed, number, 1)).random(3)
            yield draws[number], share, None

    def batch_at(step):
        return np.stack([crops.cut(clip, share, frames=frames) for clip, share, frames in drawn_at(step, local)])

    return Stream(
        batch_at=batch_at,
        batches=_FOREVER,
        clips=len(crops.clips),
        fill=1.0,
        batches_per_epoch=len(crops.clips) / data.batch,
        notes=crops.notes,
        threads=data.threads,
        sources_at=lambda step: crops.sources(clip for clip, _, _ in drawn_at(step, range(data.batch))),
    )


def validation_crops(settings: Settings, *, rows: Sequence[int] | None = None) -> Stream:
    """The middle of each clip of the validation split, once, in a fixed order.

    The last batch is filled up from the beginning. Arguments and errors: as for `train_crops`.
    """
    crops = Crops(settings, "validation")
    data = settings.data
    local = range(data.batch) if rows is None else rows
    n = len(crops.clips)
    batches = -(-n // data.batch)
    middle = np.full(3, 0.5)
    return Stream(
        batch_at=lambda step: np.stack(
            [crops.cut(int(crops.clips[(step * data.batch + i) % n]), middle) for i in local]
        ),
        batches=batches,
        clips=n,
        fill=1.0,
        batches_per_epoch=batches,
        notes=crops.notes,
        threads=data.threads,
    )


def sets_of(records: Mixture, used: np.ndarray) -> list[np.ndarray]:
    """The clips that are used for training, for each data set.

    Raises: InputError if a data set has none.
    """
    sets = np.split(used, np.searchsorted(used, np.cumsum(records.counts("train"))[:-1]))
    for clips, part in zip(sets, records.sets, strict=True):
        if not len(clips):
            raise InputError(f"config.data.path: no clip of {part.path} is as large as config.data.crop_size asks")
    return sets
