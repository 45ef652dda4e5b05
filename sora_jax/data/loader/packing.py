"""Pack clips into sequences, by index alone: no record is read, and sequence i is a function of (seed, i)."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from sora_jax.config.schema import DataSettings
from sora_jax.core.errors import InputError
from sora_jax.data.loader.mixture import ClipOrder

# Open sequences that wait for a clip that fits: more of them fill better and take longer.
_OPEN_SEQUENCES = 64


@dataclasses.dataclass(frozen=True)
class Slot:
    """A clip in a sequence.

    clip: index of the clip.
    caption: index of its caption; -1: none, the caption is dropped.
    """

    clip: int
    caption: int


class PackPlan:
    """The clips of each packed sequence, without end. One plan is made for each block of `ClipOrder`.

    Args:
      patches: number of patches of each clip, [n].
      tokens: number of tokens of each caption of each clip, end token included; n tuples.
      data: sequence_length, text_length and clips_per_sequence bound a sequence; caption_dropout is the share of
        captions dropped (the end token remains); shuffle_seed seeds captions, dropout and order.
      order: which clip comes when; None: all clips, shuffled anew each epoch.
    Raises: InputError if a clip or a caption is longer than a sequence.
    """

    def __init__(
        self,
        patches: np.ndarray,
        tokens: list[tuple[int, ...]],
        data: DataSettings,
        order: ClipOrder | None = None,
    ):
        check_capacity(patches, [max(lengths) for lengths in tokens], data)
        self._patches = np.asarray(patches)
        self._captions = np.array([len(lengths) for lengths in tokens])
        self._tokens = np.ones((len(tokens), self._captions.max() + 1), np.int64)  # the last column: dropped
        for i, lengths in enumerate(tokens):
            self._tokens[i, : len(lengths)] = lengths
        self._data = data
        self._order = order or ClipOrder([np.arange(len(tokens))], seed=data.shuffle_seed)
        self._plan = functools.lru_cache(maxsize=2)(self._make_plan)  # threads read two plans where one ends
        self.sequences = len(self._plan(0))
        used = sum(int(self._patches[slot.clip]) for slots in self._plan(0) for slot in slots)
        self.fill = used / (self.sequences * data.sequence_length)

    @property
    def sequences_per_epoch(self) -> float:
        """Mean number of sequences in which each clip comes once."""
        return self.sequences * self._order.count / self._order.size

    def __getitem__(self, number: int) -> tuple[Slot, ...]:
        """The clips of sequence 0, 1, 2, ..., without end."""
        plan = self._plan(number // self.sequences)
        # Every plan counts as many sequences as the first one; the few more or fewer are left out or come twice.
        return plan[number % self.sequences % len(plan)]

    def _make_plan(self, index):
        draw = np.random.default_rng((self._data.shuffle_seed, index))
        order = self._order.block(index)
        captions = np.floor(draw.random(len(order)) * self._captions[order]).astype(int)
        captions[draw.random(len(order)) < self._data.caption_dropout] = -1
        needs = np.stack([self._patches[order], self._tokens[order, captions], np.ones_like(order)], axis=1)
        packed = first_fit(needs, _capacity(self._data))
        slots = [tuple(Slot(int(order[i]), int(captions[i])) for i in items) for items in packed]
        return [slots[i] for i in draw.permutation(len(slots))]  # first_fit leaves the emptiest ones last


def pack_in_order(patches: np.ndarray, tokens: np.ndarray, data: DataSettings) -> list[list[int]]:
    """Pack every clip once, each with one caption: for validation.

    Args:
      patches: number of patches of each clip, [n].
      tokens: number of tokens of its caption, [n].
      data: sequence_length, text_length and clips_per_sequence bound a sequence.
    Returns: the indices of each sequence's clips.
    Raises: InputError if a clip or a caption is longer than a sequence.
    """
    check_capacity(patches, tokens, data)
    needs = np.stack([patches, tokens, np.ones(len(patches), np.int64)], axis=1)
    return first_fit(needs, _capacity(data))


def check_capacity(patches: np.ndarray, tokens: Sequence[int] | np.ndarray, data: DataSettings):
    """Raise InputError if a clip of so many patches, or a caption of so many tokens, is longer than a sequence."""
    patches, tokens = np.asarray(patches), np.asarray(tokens)
    if patches.max() > data.sequence_length:
        count = int((patches > data.sequence_length).sum())
        raise InputError(
            f"config.data.sequence_length: {data.sequence_length} patches are too few for {count} of "
            f"{len(patches)} clips; the largest needs {patches.max()}"
        )
    if tokens.max() > data.text_length:
        raise InputError(
            f"config.data.text_length: {data.text_length} tokens are too few; the longest caption has "
            f"{tokens.max()}"
        )


def _capacity(data):
    return np.array([data.sequence_length, data.text_length, data.clips_per_sequence])


def first_fit(needs: np.ndarray, capacity: np.ndarray) -> list[list[int]]:
    """Pack items into bins, each into the first open bin with room for it; the number of open bins is bounded.

    Args:
      needs: of each item, in m measures, [n, m] int.
      capacity: of each bin, [m] int.
    Returns: the indices of each bin's items.
    """
    full: list[list[int]] = []
    opened: list[list[int]] = []
    left = np.zeros((0, len(capacity)), np.int64)
    for i, need in enumerate(needs):
        fits = (left >= need).all(axis=1)
        if fits.any():
            number = int(fits.argmax())
        else:
            if len(opened) == _OPEN_SEQUENCES:
                fullest = int(left[:, 0].argmin())
                full.append(opened.pop(fullest))
                left = np.delete(left, fullest, axis=0)
            opened.append([])
            left = np.concatenate([left, capacity[None]])
            number = len(opened) - 1
        opened[number].append(i)
        left[number] -= need
    return full + opened
