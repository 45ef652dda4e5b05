"""The training streams: batch s is a function of (seed, s), so the step alone says where a run is.

A process makes those rows of every global batch that its devices hold, so the global batch is the same array
for any number of processes.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import grain
import numpy as np

from sora_jax.data.crops import Crops
from sora_jax.data.given import given_frames, image_room, with_mask
from sora_jax.data.masks import check_levels, put_masks
from sora_jax.data.mix import Draws, Mix
from sora_jax.data.packing import PackPlan, Slot, pack_in_order
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.errors import InputError
from sora_jax.files import weights_digest
from sora_jax.patches import PatchBatch, grid_positions, patch_grid, put_patches
from sora_jax.settings import Settings

_FOREVER = sys.maxsize
_CAPTIONS = 2**16  # whose tokens are kept


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
        draws=draws_of(clips.records, np.arange(len(clips.patches)), data.shuffle_seed),
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
    crops = Crops(settings, "train")
    data = settings.data
    local = range(data.batch) if rows is None else rows

    draws = draws_of(crops.records, crops.clips, data.shuffle_seed)
    pictures = draws_of(crops.records, crops.pictures, data.shuffle_seed)

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
        batches_an_epoch=len(crops.clips) / data.batch,
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
        batches_an_epoch=batches,
        notes=crops.notes,
        threads=data.threads,
    )


def draws_of(records: Mix, used: np.ndarray, seed: int) -> Draws:
    """Which of the clips that are used for training comes when.

    Raises: InputError if a data set has none of them.
    """
    sets = np.split(used, np.searchsorted(used, np.cumsum(records.counts("train"))[:-1]))
    for clips, of in zip(sets, records.sets, strict=True):
        if not len(clips):
            raise InputError(f"config.data.path: no clip of {of.path} is as large as config.data.crop_size asks")
    return Draws(sets, records.weights, seed=seed)


@functools.lru_cache(maxsize=256)
def _positions(grid):
    return grid_positions(grid)


class _Rows:
    """Latents and captions of a split, assembled into rows."""

    def __init__(self, settings: Settings, split: str):
        data = settings.data
        self.records = Mix(data.path, "latents")
        self.records.check_same("tokenizer.model", "--tokenizer={}/tokenizer.model")
        self._split, self._data, self._patch = split, data, settings.transformer.patch
        self._tokenizer = Tokenizer(self.records.tokenizer)
        if self._tokenizer.vocabulary > settings.text.vocabulary:
            raise InputError(
                f"config.text.vocabulary: {settings.text.vocabulary} is less than the "
                f"{self._tokenizer.vocabulary} tokens of {self.records.tokenizer}"
            )
        self._max_tokens = min(settings.text.max_tokens, data.row_tokens)
        # Of a caption that comes again, and most do, the tokens are known.
        self._encode = functools.lru_cache(maxsize=_CAPTIONS)(
            lambda text: np.array(self._tokenizer.encode(text, self._max_tokens), np.int32)
        )
        self._embeddings, self._text_width = data.embeddings, settings.text.width
        self._check_embeddings(settings)
        if self._embeddings:
            self._max_tokens = settings.text.max_tokens  # where they were cut
        self._padded = settings.text.padded
        if self._padded and self._max_tokens < settings.text.max_tokens:
            raise InputError(
                f"config.data.row_tokens: padded captions need text.max_tokens = {settings.text.max_tokens}"
            )
        self._clips = self.records.clips(split)
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

    def _check_embeddings(self, settings):
        """Raise InputError if the data sets' embeddings are not those that the settings' text encoder makes."""
        text, sets = settings.text, self.records.sets
        requests = [records.about.get("request", {}) for records in sets]
        held = ["text" in request.get("arrays", {}) for request in requests]
        if not self._embeddings:
            if any(held) and not text.weights and not settings.lora.rank:
                raise InputError(
                    f"config.data.embeddings: {sets[held.index(True)].path} holds the captions embedded, and this "
                    f"run would train a text encoder of its own; set it, and config.text.weights, or `prepare` "
                    f"without --text-encoder"
                )
            return
        if not all(held):
            raise InputError(
                f"config.data.embeddings: {sets[held.index(False)].path} holds none; run `prepare` with "
                f"--text-encoder=FOLDER"
            )
        # A machine that only trains need not have the encoder; then all sets are compared with the first one.
        there = pathlib.Path(text.weights).is_dir()
        wanted = {
            "tokens": text.max_tokens,
            "width": text.width,
            "text encoder": weights_digest(text.weights) if there else requests[0]["text encoder"],
        }
        for records, request in zip(sets, requests, strict=True):
            found = {**request, "width": request["arrays"]["text"][-1]}
            for key, value in wanted.items():
                if found[key] != value:
                    raise InputError(
                        f"config.data.embeddings: those of {records.path} were made with another {key} "
                        f"({found[key]}) than config.text says ({value}); prepare it anew, or take that config"
                    )

    def _check_given(self, settings):
        """Raise InputError if the records lack what image-to-video is given."""
        held, transformer = self.records.read_all(self._split, 0), self._transformer
        self._image_tokens = len(given_frames(transformer, 1)) * settings.image.tokens
        for key, name, wanted in (
            ("condition_channels", "given", held["latents"].shape),
            ("image_width", "image", (self._image_tokens, transformer.image_width)),
        ):
            if getattr(transformer, key) and (name not in held or held[name].shape != wanted):
                raise InputError(
                    f"config.transformer.{key}: the records of {self.records.path} hold no such images; run "
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
            text=np.zeros((B, S, self._text_width), dtype) if self._embeddings else np.zeros((B, S), np.int32),
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
                record = self.records.read_all(self._split, slot.clip)
                latents = record["latents"]
                count = self.patches[slot.clip]
                here = slice(n, n + count)
                put_patches(batch.patches[b, here], latents, self._patch)
                batch.positions[b, here] = _positions(patch_grid(latents.shape[:3], self._patch))
                batch.segments[b, here] = segment
                if batch.condition is not None:
                    given = given_frames(transformer, (len(latents) - 1) * self._stride + 1)
                    condition = with_mask(record["given"], given, self._stride)
                    put_patches(batch.condition[b, here], condition, self._patch)
                if batch.image is not None:
                    place = slice((segment - 1) * self._image_tokens, segment * self._image_tokens)
                    batch.image[b, place], batch.image_segments[b, place] = record["image"], segment
                n += count
                if self._embeddings:
                    tokens = self._embedded(record["text"], slot)
                else:
                    text = "" if slot.caption < 0 else self._clips[slot.clip].captions[slot.caption]
                    tokens = self._encode(text)
                batch.text[b, s : s + len(tokens)] = tokens
                length = self._max_tokens if self._padded else len(tokens)
                batch.text_segments[b, s : s + length] = segment
                s += length
        return batch

    def _embedded(self, text, slot):
        """The embeddings of the slot's caption; a record begins with those of the empty one, a single token."""
        if slot.caption < 0:
            return text[:1]
        lengths = [min(n, self._max_tokens) for n in self._clips[slot.clip].tokens]
        start = 1 + sum(lengths[: slot.caption])
        return text[start : start + lengths[slot.caption]]
