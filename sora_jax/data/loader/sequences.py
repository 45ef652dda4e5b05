"""Clips of a split and their captions, assembled into rows for the transformer."""

import functools
import math
import pathlib
from collections.abc import Iterable

import numpy as np

from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.core.patches import PatchBatch, grid_positions, patch_grid, put_patches
from sora_jax.core.storage import weights_digest
from sora_jax.data.conditioning_frames import add_mask_channels, conditioning_frame_indices, image_token_capacity
from sora_jax.data.loader.mixture import Mixture
from sora_jax.data.loader.packing import Slot
from sora_jax.data.tokenizer import Tokenizer

_CAPTIONS = 2**16  # whose tokens are kept


@functools.lru_cache(maxsize=256)
def _positions(grid):
    return grid_positions(grid)


class PackedSequences:
    """Latents and captions of a split, assembled into rows; or pixels, of which the training step makes latents.

    patches: of each clip; tokens: of each caption of each clip; longest: frames of a grid of patches at most.
    grids: the grid of each clip.
    """

    def __init__(self, settings: Settings, split: str):
        data = settings.data
        self.kind = data.kind
        self.records = Mixture(data.path, self.kind)
        self.records.check_same("tokenizer.model", "--tokenizer={}/tokenizer.model")
        self._split, self._data, self._patch = split, data, settings.transformer.patch
        self._tokenizer = Tokenizer(self.records.tokenizer)
        if self._tokenizer.vocabulary > settings.text.vocabulary:
            raise InputError(
                f"config.text.vocabulary: {settings.text.vocabulary} is less than the "
                f"{self._tokenizer.vocabulary} tokens of {self.records.tokenizer}"
            )
        self._max_tokens = min(settings.text.max_tokens, data.text_length)
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
                f"config.data.text_length: padded captions need text.max_tokens = {settings.text.max_tokens}"
            )
        self._clips = self.records.clips(split)
        channels = self._clips[0].shape[-1]
        if self.kind == "latents" and channels != settings.transformer.channels:
            raise InputError(
                f"config.transformer.channels: {settings.transformer.channels}, but the latents of {data.path} "
                f"have {channels}"
            )
        self._transformer = settings.transformer
        self._stride, self._image_room = settings.autoencoder.temporal_stride, image_token_capacity(settings)
        if self.kind == "latents":
            self._check_given(settings)
            shapes = [clip.shape[:3] for clip in self._clips]
        else:
            shapes = self._latent_shapes(settings)
        self.grids = [patch_grid(shape, self._patch) for shape in shapes]
        self.patches = np.array([np.prod(grid) for grid in self.grids])
        self.longest = max(grid[0] for grid in self.grids)
        least = self._max_tokens if self._padded else 0
        self.tokens = [tuple(max(least, min(n, self._max_tokens)) for n in clip.tokens) for clip in self._clips]
        cut = sum(n > self._max_tokens for clip in self._clips for n in clip.tokens)
        self.notes = ()
        if cut:
            self.notes = (f"{cut} captions of the {split} split are cut to {self._max_tokens} tokens",)

    def _latent_shapes(self, settings):
        """Of the latents that the pixels will be. Raises: InputError if some are no whole patches."""
        coder = settings.autoencoder
        strides = (coder.temporal_stride, coder.spatial_stride, coder.spatial_stride)
        shapes, odd = [], []
        for clip in self._clips:
            F, H, W = clip.shape[:3]
            sizes = (F - 1 + strides[0], H, W)  # the first frame is as many as a stride of others
            shapes.append(tuple(size // stride for size, stride in zip(sizes, strides, strict=True)))
            if any(size % (stride * p) for size, stride, p in zip(sizes, strides, self._patch, strict=True)):
                odd.append(clip)
        if odd:
            time, side_h, side_w = (stride * p for stride, p in zip(strides, self._patch, strict=True))
            raise InputError(
                f"{self.records.path}: {len(odd)} of {len(self._clips)} clips, one of {odd[0].frames} frames of "
                f"{odd[0].width}x{odd[0].height}, are no whole patches of {side_w}x{side_h} pixels, frames "
                f"{time} n + {time - strides[0] + 1}; `prepare` it with this config"
            )
        return shapes

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
        self._image_tokens = len(conditioning_frame_indices(transformer, 1)) * settings.image.tokens
        for key, name, wanted in (
            ("condition_channels", "given", held["latents"].shape),
            ("image_width", "image", (self._image_tokens, transformer.image_width)),
        ):
            if getattr(transformer, key) and (name not in held or held[name].shape != wanted):
                raise InputError(
                    f"config.transformer.{key}: the records of {self.records.path} hold no such images; run "
                    f"`prepare` with this config"
                )

    def alike(self) -> list[tuple[np.ndarray, int]]:
        """Clips that may lie in one batch, and how many of them in a row at most.

        Latents all may. Of pixels those of one shape, as many as there is always room for, be their captions as
        long as any: a batch is then an array.
        """
        if self.kind == "latents":
            return [(np.arange(len(self.grids)), self._data.clips_per_sequence)]
        numbers = np.array([list(self._room_for).index(grid) for grid in self.grids])
        return [(np.flatnonzero(numbers == i), room) for i, room in enumerate(self._room_for.values())]

    @functools.cached_property
    def _room_for(self):
        """By the grid of a clip, how many such clips a row takes."""
        data, longest = self._data, max(map(max, self.tokens))
        rooms = {
            grid: (data.sequence_length // math.prod(grid), data.text_length // longest) for grid in self.grids
        }
        # At least one: what has no room for that is told where rows are planned.
        return {grid: max(1, min(*room, data.clips_per_sequence)) for grid, room in sorted(rooms.items())}

    def sources(self, clips: Iterable[int]) -> list[str]:
        return [self._clips[clip].source for clip in clips]

    def assemble(self, rows: list[tuple[Slot, ...]], first: int) -> PatchBatch:
        """The rows' clips: patches [B, N, P] in the records' own bfloat16, or pixels.

        Args:
          first: a clip of the whole batch, of which these rows are a part; where pixels are wanted, all its clips
            have this one's shape.
        """
        B, N, S = len(rows), self._data.sequence_length, self._data.text_length
        transformer, P = self._transformer, int(np.prod(self._patch))
        dtype = np.dtype("bfloat16")
        batch = PatchBatch(
            patches=None,
            positions=np.zeros((B, N, 3), np.int32),
            segment_ids=np.zeros((B, N), np.int32),
            conditioning_mask=np.zeros((B, N), bool),
            text=np.zeros((B, S, self._text_width), dtype) if self._embeddings else np.zeros((B, S), np.int32),
            text_segment_ids=np.zeros((B, S), np.int32),
        )
        if self.kind == "latents":
            batch = batch.replace(patches=np.zeros((B, N, P * transformer.channels), dtype))
        else:
            shape = (B, self._room_for[self.grids[first]], *self._clips[first].shape)
            batch = batch.replace(pixels=np.zeros(shape, np.uint8))
        if transformer.condition_channels:
            batch = batch.replace(condition=np.zeros((B, N, P * transformer.condition_channels), dtype))
        if transformer.image_width:
            image = np.zeros((B, self._image_room, transformer.image_width), dtype)
            batch = batch.replace(image=image, image_segment_ids=np.zeros(image.shape[:2], np.int32))
        for b, slots in enumerate(rows):
            if not slots:
                continue
            n = s = 0
            grids = [self.grids[slot.clip] for slot in slots]
            counts = [math.prod(grid) for grid in grids]
            # Once for a row: of a small clip the calls of numpy are what takes the time.
            filled = slice(sum(counts))
            np.concatenate([_positions(grid) for grid in grids], out=batch.positions[b, filled])
            batch.segment_ids[b, filled] = np.repeat(np.arange(1, len(slots) + 1), counts)
            for segment, (slot, grid, count) in enumerate(zip(slots, grids, counts, strict=True), start=1):
                record = self.records.read_all(self._split, slot.clip)
                here = slice(n, n := n + count)
                if batch.pixels is None:
                    put_patches(batch.patches[b, here], record["latents"], self._patch)
                else:
                    batch.pixels[b, segment - 1] = record["pixels"]
                if batch.condition is not None:
                    given = conditioning_frame_indices(
                        transformer, (grid[0] * self._patch[0] - 1) * self._stride + 1
                    )
                    condition = add_mask_channels(record["given"], given, self._stride)
                    put_patches(batch.condition[b, here], condition, self._patch)
                if batch.image is not None:
                    place = slice((segment - 1) * self._image_tokens, segment * self._image_tokens)
                    batch.image[b, place], batch.image_segment_ids[b, place] = record["image"], segment
                if self._embeddings:
                    tokens = self._embedded(record["text"], slot)
                else:
                    text = "" if slot.caption < 0 else self._clips[slot.clip].captions[slot.caption]
                    tokens = self._encode(text)
                batch.text[b, s : s + len(tokens)] = tokens
                length = self._max_tokens if self._padded else len(tokens)
                batch.text_segment_ids[b, s : s + length] = segment
                s += length
        return batch

    def _embedded(self, text, slot):
        """The embeddings of the slot's caption; a record begins with those of the empty one, a single token."""
        if slot.caption < 0:
            return text[:1]
        lengths = [min(n, self._max_tokens) for n in self._clips[slot.clip].tokens]
        start = 1 + sum(lengths[: slot.caption])
        return text[start : start + lengths[slot.caption]]
