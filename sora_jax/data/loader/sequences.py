"""The clips of a split and their captions, assembled into packed sequences for the transformer."""

import functools
import math
import pathlib
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.core.patches import PatchBatch, grid_positions, patch_grid, put_patches
from sora_jax.core.storage import weights_digest
from sora_jax.data.conditioning_frames import (
    add_mask_channels,
    conditioning_frame_indices,
    image_token_capacity,
)
from sora_jax.data.loader.mixture import Mixture
from sora_jax.data.loader.packing import Slot
from sora_jax.data.tokenizer import Tokenizer

_CACHED_CAPTIONS = 2**16  # captions whose tokens are cached


@functools.lru_cache(maxsize=256)
def _positions(grid):
    return grid_positions(grid)


# From this version of the format on, a data set holds the hash of its text encoder's whole files.
WHOLE_FILE_HASHES = 3


class PackedSequences:
    """The latents and captions of a split, assembled into sequences; or its pixels, which the step encodes.

    grids: (frames, rows, columns) of patches of each clip.
    patches: number of patches of each clip, [n].
    tokens: number of tokens of each caption of each clip.
    longest: largest number of frames of patches.
    notes: remarks for the user, one line each.

    Args:
      settings: data.path names the data sets.
      split: "train" or "validation".
    Raises: InputError if the data sets do not fit the settings.
    """

    def __init__(self, settings: Settings, split: str):
        self.kind = settings.data.kind
        self.records = Mixture(settings.data.path, self.kind)
        self.records.check_same("tokenizer.model", "--tokenizer={}/tokenizer.model")
        self._split, self._settings, self._patch = split, settings, settings.transformer.patch
        self._clips = self.records.clips(split)
        self._prepare_text()
        self._image_tokens = len(conditioning_frame_indices(settings.transformer, 1)) * settings.image.tokens
        shapes = self._latent_shapes() if self.kind == "pixels" else self._check_latents()
        self.grids = [patch_grid(shape, self._patch) for shape in shapes]
        self.patches = np.array([np.prod(grid) for grid in self.grids])
        self.longest = max(grid[0] for grid in self.grids)
        least = self._max_tokens if settings.text.padded else 0
        self.tokens = [tuple(max(least, min(n, self._max_tokens)) for n in clip.tokens) for clip in self._clips]
        cut = sum(n > self._max_tokens for clip in self._clips for n in clip.tokens)
        self.notes = (f"{cut} captions of the {split} split are cut to {self._max_tokens} tokens",) if cut else ()

    def _prepare_text(self):
        """Open the tokenizer and check that it fits the settings."""
        text, data = self._settings.text, self._settings.data
        tokenizer = Tokenizer(self.records.tokenizer)
        if tokenizer.vocabulary > text.vocabulary:
            raise InputError(
                f"config.text.vocabulary: {text.vocabulary} is less than the {tokenizer.vocabulary} tokens of "
                f"{self.records.tokenizer}"
            )
        self._check_embeddings()
        # Embeddings were cut to text.max_tokens when they were made.
        self._max_tokens = text.max_tokens if data.embeddings else min(text.max_tokens, data.text_length)
        if text.padded and self._max_tokens < text.max_tokens:
            raise InputError(f"config.data.text_length: padded captions need text.max_tokens = {text.max_tokens}")
        self._encode = functools.lru_cache(maxsize=_CACHED_CAPTIONS)(
            lambda caption: np.array(tokenizer.encode(caption, self._max_tokens), np.int32)
        )

    def _check_embeddings(self):
        """Raise InputError if the data sets' embeddings are not those that the settings' text encoder makes."""
        text, sets = self._settings.text, self.records.sets
        requests = [records.about.get("request", {}) for records in sets]
        held = ["text" in request.get("arrays", {}) for request in requests]
        if not self._settings.data.embeddings:
            if any(held) and not text.weights and not self._settings.lora.rank:
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
        # A machine that only trains may lack the encoder; then all data sets are compared with the first one.
        there = pathlib.Path(text.weights).is_dir()
        wanted = {
            "tokens": text.max_tokens,
            "width": text.width,
            "text encoder": weights_digest(text.weights) if there else requests[0]["text encoder"],
        }
        for records, request in zip(sets, requests, strict=True):
            found = {**request, "width": request["arrays"]["text"][-1]}
            for key, value in wanted.items():
                if key == "text encoder" and request["format"] < WHOLE_FILE_HASHES:
                    continue
                if found[key] != value:
                    raise InputError(
                        f"config.data.embeddings: those of {records.path} were made with another {key} "
                        f"({found[key]}) than config.text says ({value}); prepare it anew, or take that config"
                    )

    def _check_latents(self):
        """Shapes [f, h, w] of the latents. Raises: InputError if the records lack what the transformer needs."""
        transformer, channels = self._settings.transformer, self._clips[0].shape[-1]
        if channels != transformer.channels:
            raise InputError(
                f"config.transformer.channels: {transformer.channels}, but the latents of "
                f"{self._settings.data.path} have {channels}"
            )
        record = self.records.read_all(self._split, 0)
        for key, name, wanted in (
            ("condition_channels", "given", record["latents"].shape),
            ("image_width", "image", (self._image_tokens, transformer.image_width)),
        ):
            if getattr(transformer, key) and (name not in record or record[name].shape != wanted):
                raise InputError(
                    f"config.transformer.{key}: the records of {self.records.path} hold no such images; run "
                    f"`prepare` with this config"
                )
        return [clip.shape[:3] for clip in self._clips]

    def _latent_shapes(self):
        """Shapes [f, h, w] of the latents of the pixels. Raises: InputError if some are not whole patches."""
        coder = self._settings.autoencoder
        strides = (coder.temporal_stride, coder.spatial_stride, coder.spatial_stride)
        shapes, odd = [], []
        for clip in self._clips:
            F, H, W, _ = self._pixel_shape(clip)
            sizes = (F - 1 + strides[0], H, W)  # the first frame counts as a stride of frames
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

    def _pixel_shape(self, clip):
        """Shape [F, H, W, 3] of what is taken of a clip's pixels."""
        return clip.shape

    def groups(self) -> list[tuple[np.ndarray, int]]:
        """(indices of clips that may share a batch, maximum number of them in a sequence), for each such group.

        Latents are one group. Pixels are grouped by shape, so that a batch is one array; the number is what always
        fits, however long the captions.
        """
        if self.kind == "latents":
            return [(np.arange(len(self.grids)), self._settings.data.clips_per_sequence)]
        numbers = np.array([list(self._clips_of_grid).index(grid) for grid in self.grids])
        return [(np.flatnonzero(numbers == i), count) for i, count in enumerate(self._clips_of_grid.values())]

    @functools.cached_property
    def _clips_of_grid(self):
        """By the grid of a clip, the number of such clips in a sequence."""
        data, longest = self._settings.data, max(map(max, self.tokens))
        room = {
            grid: (data.sequence_length // math.prod(grid), data.text_length // longest) for grid in self.grids
        }
        # At least one: planning tells of clips that have no room at all.
        return {grid: max(1, min(*fits, data.clips_per_sequence)) for grid, fits in sorted(room.items())}

    def sources(self, clips: Iterable[int]) -> list[str]:
        """The source files of these clips."""
        return [self._clips[clip].source for clip in clips]

    def assemble(self, sequences: list[tuple[Slot, ...]], first: int, numbers: Sequence[int]) -> PatchBatch:
        """The batch of these sequences: patches [B, N, P] in the records' bfloat16, or pixels.

        Args:
          sequences: the clips of each.
          numbers: of the sequences, for random draws.
          first: a clip of the global batch, of which these sequences are a part; all clips of a batch of pixels
            have its shape.
        """
        batch = self._empty_batch(len(sequences), first)
        for b, (slots, number) in enumerate(zip(sequences, numbers, strict=True)):
            if slots:
                row = jax.tree.map(lambda array: array[b], batch)  # noqa: B023
                self._put_positions(row, slots)
                self._put_clips(row, slots, number)
        return batch

    def _empty_batch(self, B, first):
        """A batch of zeros."""
        settings, dtype = self._settings, np.dtype("bfloat16")
        N, S, I = settings.data.sequence_length, settings.data.text_length, image_token_capacity(settings)
        transformer, P = settings.transformer, math.prod(self._patch)
        arrays = {
            "patches": None,
            "positions": np.zeros((B, N, 3), np.int32),
            "segment_ids": np.zeros((B, N), np.int32),
            "conditioning_mask": np.zeros((B, N), bool),
            "text": np.zeros((B, S), np.int32),
            "text_segment_ids": np.zeros((B, S), np.int32),
        }
        if settings.data.embeddings:
            arrays["text"] = np.zeros((B, S, settings.text.width), dtype)
        if self.kind == "latents":
            arrays["patches"] = np.zeros((B, N, P * transformer.channels), dtype)
        else:
            count = self._clips_of_grid[self.grids[first]]
            arrays["pixels"] = np.zeros((B, count, *self._pixel_shape(self._clips[first])), np.uint8)
        if transformer.condition_channels and self.kind == "latents":
            arrays["condition"] = np.zeros((B, N, P * transformer.condition_channels), dtype)
        if transformer.image_width:
            arrays["image"] = np.zeros((B, I, transformer.image_width), dtype)
            arrays["image_segment_ids"] = np.zeros((B, I), np.int32)
        return PatchBatch(**arrays)

    def _put_positions(self, row, slots):
        """Fill in positions and segment ids: once for all clips, as numpy's calls cost more than small clips."""
        grids = [self.grids[slot.clip] for slot in slots]
        counts = [math.prod(grid) for grid in grids]
        filled = slice(sum(counts))
        np.concatenate([_positions(grid) for grid in grids], out=row.positions[filled])
        row.segment_ids[filled] = np.repeat(np.arange(1, len(slots) + 1), counts)

    def _put_clips(self, row, slots, number):
        """Fill in patches or pixels, text, and the inputs of image-to-video."""
        n = s = 0
        for segment, slot in enumerate(slots, start=1):
            record, grid = self.records.read_all(self._split, slot.clip), self.grids[slot.clip]
            here = slice(n, n := n + math.prod(grid))
            if row.pixels is None:
                put_patches(row.patches[here], record["latents"], self._patch)
            else:
                self._put_pixels(row, segment - 1, slot, record, number)
            if row.condition is not None:
                put_patches(row.condition[here], self._condition(record["given"], grid), self._patch)
            if row.image is not None:
                place = slice((segment - 1) * self._image_tokens, segment * self._image_tokens)
                row.image[place], row.image_segment_ids[place] = record["image"], segment
            text = self._text(record, slot)
            row.text[s : s + len(text)] = text
            length = self._max_tokens if self._settings.text.padded else len(text)
            row.text_segment_ids[s : s + length] = segment
            s += length

    def _put_pixels(self, row, place, slot, record, number):
        """Fill in the pixels of clip `place` of sequence `number`."""
        row.pixels[place] = record["pixels"]

    def _condition(self, latents, grid):
        """The condition channels of a clip, [f, h, w, C]."""
        stride = self._settings.autoencoder.temporal_stride
        frames = (grid[0] * self._patch[0] - 1) * stride + 1
        return add_mask_channels(latents, conditioning_frame_indices(self._settings.transformer, frames), stride)

    def _text(self, record, slot):
        """The tokens of the slot's caption, or its embeddings [tokens, E]."""
        clip = self._clips[slot.clip]
        if not self._settings.data.embeddings:
            return self._encode("" if slot.caption < 0 else clip.captions[slot.caption])
        if slot.caption < 0:
            return record["text"][:1]  # a record begins with the embedding of the empty caption, a single token
        lengths = [min(n, self._max_tokens) for n in clip.tokens]
        start = 1 + sum(lengths[: slot.caption])
        return record["text"][start : start + lengths[slot.caption]]
