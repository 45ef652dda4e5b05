"""The training streams: batch s is a function of (seed, s), so the step alone says where a run is.

A process makes those rows of every global batch that its devices hold, so the global batch is the same array
for any number of processes.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import grain
import numpy as np

from sora_jax.config import parse_size
from sora_jax.data.given import given_frames, image_room, with_mask
from sora_jax.data.masks import check_levels, put_masks
from sora_jax.data.packing import PackPlan, Slot, pack_in_order
from sora_jax.data.records import Records
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.errors import InputError
from sora_jax.patches import PatchBatch, grid_positions, patch_grid, patchify
from sora_jax.settings import Settings

_FOREVER = sys.maxsize


@dataclasses.dataclass(frozen=True)
class Stream:
    """Batches by number, or one after the other from any step on.

    batch_at: batch s of this host; depends on nothing but s.
    batches: how many there are; for training, without end.
    clips: how many clips take turns.
    fill: share of the rows' patches that are not padding; 1 for crops.
    batches_an_epoch: how many let every clip come once.
    notes: what a person should know, each one line.
    threads: that read ahead.
    sources_at: the sources of the clips in the whole batch of a step, over all hosts; of streams without end.
    """

    batch_at: Callable[[int], PatchBatch | np.ndarray]
    batches: int
    clips: int
    fill: float
    batches_an_epoch: float
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


def train_rows(settings: Settings, *, rows: Sequence[int] | None = None) -> Stream:
    """Packed rows of patches and captions for the transformer, shuffled, without end: PatchBatch of numpy arrays.

    Args:
      settings: data.path names latents that `prepare` wrote.
      rows: which rows of every global batch to make; None: all.
    Raises: InputError if there is no such data set, or a clip or caption is larger than a row.
    """
    clips = _Rows(settings, "train")
    data = settings.data
    local = range(data.batch) if rows is None else rows
    check_levels(settings.masks, clips.longest)
    plan = PackPlan(
        clips.patches,
        clips.tokens,
        row_patches=data.row_patches,
        row_tokens=data.row_tokens,
        row_clips=data.row_clips,
        dropout=data.caption_dropout,
        seed=data.shuffle_seed,
    )

    def batch_at(step):
        numbers = [step * data.batch + i for i in local]
        return put_masks(clips.assemble([plan[i] for i in numbers]), numbers, settings)

    return Stream(
        batch_at=batch_at,
        batches=_FOREVER,
        clips=len(clips.patches),
        fill=plan.fill,
        batches_an_epoch=plan.rows_an_epoch / data.batch,
        notes=clips.notes,
        threads=data.threads,
        sources_at=lambda step: clips.sources(
            slot.clip for i in range(data.batch) for slot in plan[step * data.batch + i]
        ),
    )


def validation_rows(settings: Settings, *, rows: Sequence[int] | None = None) -> Stream:
    """The held-out sources' clips, each once with its first caption, always in the same rows; ends.

    The last batch is filled up with empty rows. Arguments and errors are those of `train_rows`.
    """
    clips = _Rows(settings, "validation")
    data = settings.data
    local = range(data.batch) if rows is None else rows
    plan = pack_in_order(
        clips.patches,
        np.array([lengths[0] for lengths in clips.tokens]),
        row_patches=data.row_patches,
        row_tokens=data.row_tokens,
        row_clips=data.row_clips,
    )
    slots = [tuple(Slot(clip, 0) for clip in row) for row in plan]
    batches = -(-len(slots) // data.batch)
    slots += [()] * (batches * data.batch - len(slots))
    return Stream(
        batch_at=lambda step: clips.assemble([slots[step * data.batch + i] for i in local]),
        batches=batches,
        clips=len(clips.patches),
        fill=float(clips.patches.sum() / (len(plan) * data.row_patches)),
        batches_an_epoch=batches,
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
    crops = _Crops(settings, "train")
    data = settings.data
    local = range(data.batch) if rows is None else rows

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        return np.random.default_rng((data.shuffle_seed, epoch)).permutation(len(crops.clips))

    def drawn_at(step, rows):
        """(clip, where in it, frames or None) of each crop."""
        if np.random.default_rng((data.shuffle_seed, step, 2)).random() < data.image_share:
            for number in (i * data.crop_frames + frame for i in rows for frame in range(data.crop_frames)):
                draw = np.random.default_rng((data.shuffle_seed, step, number, 3))
                yield draw.choice(crops.pictures), draw.random(3), 1
            return
        for i in rows:
            number = step * data.batch + i
            epoch, place = divmod(number, len(crops.clips))
            share = np.random.default_rng((data.shuffle_seed, number, 1)).random(3)
            yield crops.clips[order(epoch)[place]], share, None

    def batch_at(step):
        return np.stack([crops.cut(clip, share, frames=frames) for clip, share, frames in drawn_at(step, local)])

    return Stream(
        batch_at=batch_at,
        batches=_FOREVER,
        clips=len(crops.clips),
        fill=1.0,
        batches_an_epoch=len(crops.clips) / data.batch,
        notes=crops.notes,
        threads=data.threads,
        sources_at=lambda step: crops.sources(clip for clip, _, _ in drawn_at(step, range(data.batch))),
    )


def validation_crops(settings: Settings, *, rows: Sequence[int] | None = None) -> Stream:
    """The middle of each clip of the held-out sources, once, in a fixed order; ends.

    The last batch is filled up from the beginning. Arguments and errors are those of `train_crops`.
    """
    crops = _Crops(settings, "validation")
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
        batches_an_epoch=batches,
        notes=crops.notes,
        threads=data.threads,
    )


class _Rows:
    """Latents and captions of a split, assembled into rows."""

    def __init__(self, settings: Settings, split: str):
        data = settings.data
        self._records = Records(data.path, "latents")
        self._split, self._data, self._patch = split, data, settings.transformer.patch
        self._tokenizer = Tokenizer(self._records.tokenizer)
        if self._tokenizer.vocabulary > settings.text.vocabulary:
            raise InputError(
                f"config.text.vocabulary: {settings.text.vocabulary} is less than the "
                f"{self._tokenizer.vocabulary} tokens of {self._records.tokenizer}"
            )
        self._max_tokens = min(settings.text.max_tokens, data.row_tokens)
        self._padded = settings.text.padded
        if self._padded and self._max_tokens < settings.text.max_tokens:
            raise InputError(
                f"config.data.row_tokens: padded captions need text.max_tokens = {settings.text.max_tokens}"
            )
        self._clips = self._records.clips(split)
        channels = self._clips[0].shape[-1]
        if channels != settings.transformer.channels:
            raise InputError(
                f"config.transformer.channels: {settings.transformer.channels}, but the latents of {data.path} "
                f"have {channels}"
            )
        self._transformer = settings.transformer
        self._stride, self._image_room = settings.autoencoder.temporal_stride, image_room(settings)
        self._check_given(settings)
        self.patches = np.array([np.prod(patch_grid(clip.shape[:3], self._patch)) for clip in self._clips])
        self.longest = max(clip.shape[0] // self._patch[0] for clip in self._clips)
        least = self._max_tokens if self._padded else 0
        self.tokens = [tuple(max(least, min(n, self._max_tokens)) for n in clip.tokens) for clip in self._clips]
        cut = sum(n > self._max_tokens for clip in self._clips for n in clip.tokens)
        self.notes = ()
        if cut:
            self.notes = (f"{cut} captions of the {split} split are cut to {self._max_tokens} tokens",)

    def _check_given(self, settings):
        """Raise InputError if the records lack what image-to-video is given."""
        held, transformer = self._records.read_all(self._split, 0), self._transformer
        self._image_tokens = len(given_frames(transformer, 1)) * settings.image.tokens
        for key, name, wanted in (
            ("condition_channels", "given", held["latents"].shape),
            ("image_width", "image", (self._image_tokens, transformer.image_width)),
        ):
            if getattr(transformer, key) and (name not in held or held[name].shape != wanted):
                raise InputError(
                    f"config.transformer.{key}: the records of {self._records.path} hold no such images; run "
                    f"`prepare` with this config"
                )

    def sources(self, clips: Iterable[int]) -> list[str]:
        return [self._clips[clip].source for clip in clips]

    def assemble(self, rows: list[tuple[Slot, ...]]) -> PatchBatch:
        """The rows' clips, patches [B, N, P] in the records' own bfloat16."""
        B, N, S = len(rows), self._data.row_patches, self._data.row_tokens
        transformer, P = self._transformer, int(np.prod(self._patch))
        dtype = np.dtype("bfloat16")
        batch = PatchBatch(
            patches=np.zeros((B, N, P * transformer.channels), dtype),
            positions=np.zeros((B, N, 3), np.int32),
            segments=np.zeros((B, N), np.int32),
            known=np.zeros((B, N), bool),
            text=np.zeros((B, S), np.int32),
            text_segments=np.zeros((B, S), np.int32),
        )
        if transformer.condition_channels:
            batch = batch.replace(condition=np.zeros((B, N, P * transformer.condition_channels), dtype))
        if transformer.image_width:
            image = np.zeros((B, self._image_room, transformer.image_width), dtype)
            batch = batch.replace(image=image, image_segments=np.zeros(image.shape[:2], np.int32))
        for b, slots in enumerate(rows):
            n = s = 0
            for segment, slot in enumerate(slots, start=1):
                record = self._records.read_all(self._split, slot.clip)
                latents = record["latents"]
                count = self.patches[slot.clip]
                here = slice(n, n + count)
                batch.patches[b, here] = patchify(latents, self._patch)
                batch.positions[b, here] = grid_positions(patch_grid(latents.shape[:3], self._patch))
                batch.segments[b, here] = segment
                if batch.condition is not None:
                    given = given_frames(transformer, (len(latents) - 1) * self._stride + 1)
                    condition = with_mask(record["given"], given, self._stride)
                    batch.condition[b, here] = patchify(condition, self._patch)
                if batch.image is not None:
                    place = slice((segment - 1) * self._image_tokens, segment * self._image_tokens)
                    batch.image[b, place], batch.image_segments[b, place] = record["image"], segment
                n += count
                text = "" if slot.caption < 0 else self._clips[slot.clip].captions[slot.caption]
                tokens = self._tokenizer.encode(text, self._max_tokens)
                batch.text[b, s : s + len(tokens)] = tokens
                length = self._max_tokens if self._padded else len(tokens)
                batch.text_segments[b, s : s + length] = segment
                s += length
        return batch


class _Crops:
    """Pixels of a split, cut to one size and length."""

    def __init__(self, settings: Settings, split: str):
        data, strides = settings.data, settings.autoencoder
        self._records, self._split = Records(data.path, "pixels"), split
        size = parse_size(data.crop_size, "config.data.crop_size")
        if isinstance(size, int):
            raise InputError(f"config.data.crop_size: {data.crop_size!r} must be WIDTHxHEIGHT")
        if any(side % strides.spatial_stride for side in size):
            raise InputError(
                f"config.data.crop_size: {data.crop_size} must be a multiple of the autoencoder's "
                f"{strides.spatial_stride}"
            )
        if (data.crop_frames - 1) % strides.temporal_stride:
            raise InputError(
                f"config.data.crop_frames: {data.crop_frames} must be {strides.temporal_stride} n + 1 "
                f"for the autoencoder"
            )
        self._crop = (data.crop_frames, *size)
        self._manifest = clips = self._records.clips(split)
        fits = np.array(
            [[side >= cut for side, cut in zip(clip.shape, self._crop, strict=False)] for clip in clips]
        )
        self.clips = np.flatnonzero(fits.all(axis=1))  # as large as the crop
        self.pictures = np.flatnonzero(fits[:, 1:].all(axis=1))  # at least one frame of that size
        wanted = f"{data.crop_frames} frames of {data.crop_size}"
        if not len(self.clips):
            largest = max(clips, key=lambda clip: np.prod(clip.shape))
            raise InputError(
                f"{self._records.path}: none of {len(clips)} clips in the {split} split has {wanted}; "
                f"the largest has {largest.frames} of {largest.width}x{largest.height}"
            )
        self.notes = ()
        if len(self.clips) < len(clips):
            self.notes = (
                f"{len(clips) - len(self.clips)} of {len(clips)} clips are smaller than {wanted}: not used",
            )

    def sources(self, clips: Iterable[int]) -> list[str]:
        return [self._manifest[clip].source for clip in clips]

    def cut(self, clip: int, share: np.ndarray, *, frames: int | None = None) -> np.ndarray:
        """The crop of a clip, or so many frames of it, at these shares of the free frames, rows and columns."""
        pixels = self._records.read(self._split, int(clip))
        sizes = (frames or self._crop[0], *self._crop[1:])
        free = np.array(pixels.shape[:3]) - sizes + 1
        starts = np.minimum((share * free).astype(int), free - 1)
        return pixels[tuple(slice(s, s + n) for s, n in zip(starts, sizes, strict=True))]
