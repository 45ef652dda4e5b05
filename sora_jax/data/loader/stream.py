"""The training streams: batch s is a function of (seed, s), so the step alone says where a run is.

A process makes those rows of every global batch that its devices hold, so the global batch is the same array
for any number of processes.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.core.patches import PatchBatch
from sora_jax.data.loader.conditioning_masks import check_frame_times, draw_conditioning_masks
from sora_jax.data.loader.crops import Crops
from sora_jax.data.loader.ghosts import add_ghosts
from sora_jax.data.loader.mixture import ClipOrder, Mixture
from sora_jax.data.loader.packing import PackPlan, Slot, pack_in_order
from sora_jax.data.loader.sequences import PackedSequences
from sora_jax.data.loader.shape_plan import ShapePlan

_FOREVER = sys.maxsize


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches by number, or one after the other from any step on.

    batch_at: batch s of this host; depends on nothing but s.
    batches: how many there are; for training, without end.
    clips: how many clips take turns.
    fill: share of the rows' patches that are not padding; 1 for crops.
    batches_per_epoch: how many let every clip come once.
    notes: what a person should know, each one line.
    threads: that read ahead.
    sources_at: the sources of the clips in the whole batch of a step, over all hosts; of streams without end.
    """

    batch_at: Callable[[int], PatchBatch | np.ndarray]
    batches: int
    clips: int
    fill: float
    batches_per_epoch: float
    notes: tuple[str, ...]
    threads: int
    sources_at: Callable[[int], list[str]] = lambda step: []

    def iterate(self, start: int = 0) -> Iterator[PatchBatch | np.ndarray]:
        """Batches start, start + 1, ...; threads read ahead until the iterator is closed (or exhausted)."""
        dataset = grain.MapDataset.range(start, self.batches).map(self.batch_at)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=2 * self.threads)
        iterator = iter(dataset.to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()


def train_sequences(settings: Settings, *, rows: Sequence[int] | None = None) -> Stream:
    """Packed rows of patches and captions for the transformer, shuffled, without end: PatchBatch of numpy arrays.

    Args:
      settings: data.path names latents that `prepare` wrote; or pixels, where data.autoencoder encodes them in the
        step: then the rows hold them in place of patches, and all clips of a batch have one shape.
      rows: which rows of every global batch to make; None: all.
    Raises: InputError if there is no such data set, a clip or caption is larger than a row, or echoes are wanted
      of pixels.
    """
    clips = PackedSequences(settings, "train")
    data = settings.data
    local = range(data.batch) if rows is None else rows
    check_frame_times(settings.masks, clips.longest)
    if settings.flow.ghosts and clips.kind == "pixels":
        raise InputError("config.flow.ghosts: are made of latents; `prepare` with --autoencoder, or set it to 0")
    plan = plan_sequences(clips, settings)

    def batch_at(step):
        numbers = [step * data.batch + i for i in local]
        first = plan[step * data.batch][0].clip
        batch = draw_conditioning_masks(clips.assemble([plan[i] for i in numbers], first), numbers, settings)
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


def plan_sequences(clips: PackedSequences, settings: Settings) -> PackPlan | ShapePlan:
    """Which clips lie in which row of training, for ever.

    Raises: InputError if a clip or caption is larger than a row.
    """
    data = settings.data
    sets = sets_of(clips.records, np.arange(len(clips.patches)))
    shared = {key: getattr(data, key) for key in ("sequence_length", "text_length")}
    shared |= {"dropout": data.caption_dropout, "seed": data.shuffle_seed}
    if clips.kind == "latents":
        return PackPlan(
            clips.patches,
            clips.tokens,
            clips_per_sequence=data.clips_per_sequence,
            draws=ClipOrder(sets, clips.records.weights, seed=data.shuffle_seed),
            **shared,
        )
    return ShapePlan(
        clips.patches,
        clips.tokens,
        clips.alike(),
        batch=data.batch,
        sets=sets,
        weights=clips.records.weights,
        **shared,
    )


def validation_sequences(settings: Settings, *, rows: Sequence[int] | None = None) -> Stream:
    """The held-out sources' clips, each once with its first caption, always in the same rows; ends.

    The last batch is filled up with empty rows. Arguments and errors are those of `train_sequences`.
    """
    clips = PackedSequences(settings, "validation")
    data = settings.data
    local = range(data.batch) if rows is None else rows
    lengths = np.array([lengths[0] for lengths in clips.tokens])
    room = {"sequence_length": data.sequence_length, "text_length": data.text_length}
    held: list[tuple[Slot, ...]] = []
    for alike, clips_per_sequence in clips.alike():
        packed = pack_in_order(clips.patches[alike], lengths[alike], clips_per_sequence=clips_per_sequence, **room)
        held += [tuple(Slot(int(alike[i]), 0) for i in row) for row in packed]
        held += [()] * (-len(held) % data.batch)
    batches = len(held) // data.batch

    def batch_at(step):
        of_batch = held[step * data.batch : (step + 1) * data.batch]
        return clips.assemble([of_batch[i] for i in local], of_batch[0][0].clip)

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

    At data.image_share of the steps the same number of frames comes as pictures, [B * F, 1, H, W, 3]: single
    frames of any clip that has the crop's rows and columns.

    Args:
      settings: data.path names pixels that `prepare` wrote; data.crop_frames and data.crop_size the crop.
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
        """(clip, where in it, frames or None) of each crop."""
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
    """The middle of each clip of the held-out sources, once, in a fixed order; ends.

    The last batch is filled up from the beginning. Arguments and errors are those of `train_crops`.
    """
    crops = Crops(settings, "validation")
    data = settings.data
    local = range(data.batch) if rows is None else rows
    n = len(crops.clips)
    batches = -(-n // data.batch)
    middle = np.full(3, 0.5)
    return Stream(
        batch_at=lambda step: np.stack(
            [crops.cut(crops.clips[(step * data.batch + i) % n], middle) for i in local]
        ),
        batches=batches,
        clips=n,
        fill=1.0,
        batches_per_epoch=batches,
        notes=crops.notes,
        threads=data.threads,
    )


def sets_of(records: Mixture, used: np.ndarray) -> list[np.ndarray]:
    """The clips that are used for training, of each data set.

    Raises: InputError if a data set has none of them.
    """
    sets = np.split(used, np.searchsorted(used, np.cumsum(records.counts("train"))[:-1]))
    for clips, of in zip(sets, records.sets, strict=True):
        if not len(clips):
            raise InputError(f"config.data.path: no clip of {of.path} is as large as config.data.crop_size asks")
    return sets
