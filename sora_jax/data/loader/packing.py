"""Pack clips into sequences of equal work, by index alone: no record is read.

Sequence i is a function of the settings and i, whatever the number of hosts and devices.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from sora_jax.config.schema import DataSettings, TransformerSettings
from sora_jax.core.errors import InputError
from sora_jax.data.loader.mixture import ClipOrder

# Open sequences that wait for a clip that fits: more of them fill better and take longer.
_OPEN_SEQUENCES = 64
# Clips that are spread over sequences together: more of them balance better and take longer.
_POOL = 2048


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

    The sequences of a batch have nearly equal work, so that no device waits for another.

    Args:
      patches: number of patches of each clip, [n].
      tokens: number of tokens of each caption of each clip, end token included; n tuples.
      data: sequence_length, text_length and clips_per_sequence bound a sequence; batch is the number of sequences
        in a batch; caption_dropout is the share of captions dropped (the end token remains); shuffle_seed seeds
        captions, dropout and order.
      work: of each clip, in any unit, [n]; None: its patches.
      order: which clip comes when; None: all clips, shuffled anew each epoch.
    Raises: InputError if a clip or a caption is longer than a sequence.
    """

    def __init__(
        self,
        patches: np.ndarray,
        tokens: list[tuple[int, ...]],
        data: DataSettings,
        work: np.ndarray | None = None,
        order: ClipOrder | None = None,
    ):
        check_capacity(patches, [max(lengths) for lengths in tokens], data)
        self._patches = np.asarray(patches)
        self._work = self._patches if work is None else work
        self._captions = np.array([len(lengths) for lengths in tokens])
        self._tokens = np.ones((len(tokens), self._captions.max() + 1), np.int64)  # the last column: dropped
        for i, lengths in enumerate(tokens):
            self._tokens[i, : len(lengths)] = lengths
        self._data = data
        self._order = order or ClipOrder([np.arange(len(tokens))], seed=data.shuffle_seed)
        self._plan = functools.lru_cache(maxsize=2)(self._make_plan)  # threads read two plans where one ends
        first = self._pack(0)
        self.sequences = len(first)
        used = sum(int(self._patches[slot.clip]) for slots in first for slot in slots)
        self.fill = used / (self.sequences * data.sequence_length)

    @property
    def sequences_per_epoch(self) -> float:
        """Mean number of sequences in which each clip comes once."""
        return self.sequences * self._order.count / self._order.size

    def __getitem__(self, number: int) -> tuple[Slot, ...]:
        """The clips of sequence 0, 1, 2, ..., without end."""
        return self._plan(number // self.sequences)[number % self.sequences]

    def _pack(self, index):
        """The sequences of a plan, in random order."""
        draw = np.random.default_rng((self._data.shuffle_seed, index))
        order = self._order.block(index)
        captions = np.floor(draw.random(len(order)) * self._captions[order]).astype(int)
        captions[draw.random(len(order)) < self._data.caption_dropout] = -1
        needs = np.stack([self._patches[order], self._tokens[order, captions], np.ones_like(order)], axis=1)
        packed = []
        for begin in range(0, len(order), _POOL):
            pool = slice(begin, begin + _POOL)
            spread_out = spread(needs[pool], self._work[order[pool]], _capacity(self._data))
            packed += [[begin + i for i in items] for items in spread_out]
        slots = [tuple(Slot(int(order[i]), int(captions[i])) for i in items) for items in packed]
        return [slots[i] for i in draw.permutation(len(slots))]

    def _make_plan(self, index):
        packed = self._pack(index)
        # Every plan counts as many sequences as the first one; the few more or fewer are left out or come twice.
        slots = [packed[i % len(packed)] for i in range(self.sequences)]
        work = np.array([sum(self._work[slot.clip] for slot in sequence) for sequence in slots])
        draw = np.random.default_rng((self._data.shuffle_seed, index, 8))
        return [slots[i] for i in group(work, self._data.batch, index * self.sequences, draw)]


def clip_work(settings: TransformerSettings, patches: np.ndarray) -> np.ndarray:
    """FLOPs of a layer's forward pass over clips of so many patches, [n] float64: a n + b n^2.

    The pass over text is left out, and so are the model's ends: both are small.
    """
    D, M, n = settings.width, settings.mlp, np.asarray(patches, np.float64)
    # Self-attention's four projections, cross-attention's two of the patches, the MLP; logits and outputs.
    return n * (2 * (6 * D * D + 2 * D * M)) + n * n * (2 * 2 * D)


def spread(needs: np.ndarray, work: np.ndarray, capacity: np.ndarray) -> list[list[int]]:
    """Spread items over bins of equal work: the largest first, each into the bin of the least work with room.

    Args:
      needs: of each item, in m measures, [n, m] int. work: of each item, [n].
      capacity: of each bin, [m] int.
    Returns: the indices of each bin's items; as many bins as the needs ask for, a few more where items don't fit.
    Source: Graham 1969 (doi 10.1137/0117039), the rule of the longest processing time.
    """
    bins = int(np.max(-(-needs.sum(axis=0) // capacity)))
    left = np.repeat(capacity[:, None], len(needs), axis=1)  # one column a bin
    load = np.zeros(len(needs))
    held: list[list[int]] = [[] for _ in range(bins)]
    for i in np.argsort(-work, kind="stable").tolist():
        fits = (left[:, : len(held)] >= needs[i][:, None]).all(axis=0)
        number = int(np.where(fits, load[: len(held)], np.inf).argmin())
        if not fits[number]:
            number = len(held)
            held.append([])
        held[number].append(i)
        left[:, number] -= needs[i]
        load[number] += work[i]
    return held


def group(work: np.ndarray, batch: int, begin: int, draw: np.random.Generator) -> list[int]:
    """An order of sequences in which those of a batch have nearly equal work, and batches come at random.

    Args:
      work: of each sequence, [n].
      batch: number of sequences in a batch.
      begin: number of sequences before these; a batch may hold some of them.
      draw: source of the order.
    """
    n = len(work)
    before = min(-begin % batch, n)  # they end the batch that the last plan began
    after = (n - before) % batch
    ranked = np.argsort(work, kind="stable")
    # Batches of two plans hold sequences of the middle, for those have equal work in both plans.
    middle = slice(start := (n - before - after) // 2, start + before + after)
    ends = draw.permutation(ranked[middle])
    batches = draw.permutation(np.delete(ranked, middle).reshape(-1, batch))
    batches = draw.permuted(batches, axis=1)  # within a batch
    return [*ends[:before].tolist(), *batches.reshape(-1).tolist(), *ends[before:].tolist()]


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
