"""Pack clips into rows of patches, by index alone: nothing is read, and row i is a function of (seed, i)."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from sora_jax.core.errors import InputError
from sora_jax.data.loader.mixture import ClipOrder

# Open sequences that wait for a clip that fits: more fill better and take longer.
_OPEN_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Slot:
    """A clip in a row.

    clip: index of the clip.
    caption: which of its captions describes it; -1: none, the caption is dropped.
    """

    clip: int
    caption: int


class PackPlan:
    """Which clips lie in which row, for ever. One plan is made for each block of `ClipOrder`.

    Args:
      patches: of each clip, [n].
      tokens: of each caption of each clip, its end token included, n tuples.
      sequence_length, text_length, clips_per_sequence: what a row holds at most.
      draws: which clip comes when; None: all in turns, shuffled anew each epoch.
      dropout: share of the captions dropped (one token is left, the end token).
      seed: of the choice among captions, the dropout, and the order of the rows.
    Raises: InputError if a clip or a caption is larger than a row.
    """

    def __init__(
        self,
        patches: np.ndarray,
        tokens: list[tuple[int, ...]],
        *,
        sequence_length: int,
        text_length: int,
        clips_per_sequence: int,
        draws: ClipOrder | None = None,
        dropout: float = 0.0,
        seed: int = 0,
    ):
        check_room(patches, [max(lengths) for lengths in tokens], sequence_length, text_length)
        self._patches = np.asarray(patches)
        self._captions = np.array([len(lengths) for lengths in tokens])
        self._tokens = np.ones((len(tokens), self._captions.max() + 1), np.int64)  # the last column: dropped
        for i, lengths in enumerate(tokens):
            self._tokens[i, : len(lengths)] = lengths
        self._room = np.array([sequence_length, text_length, clips_per_sequence])
        self._dropout, self._seed = dropout, seed
        self._draws = draws or ClipOrder([np.arange(len(tokens))], seed=seed)
        self._plan = functools.lru_cache(maxsize=2)(self._make_plan)  # threads read rows of two plans at a seam
        self.rows = len(self._plan(0))
        self.fill = sum(int(self._patches[slot.clip]) for row in self._plan(0) for slot in row)
        self.fill /= self.rows * sequence_length

    @property
    def sequences_per_epoch(self) -> float:
        """PackedSequences in which as many clips come as there are."""
        return self.rows * self._draws.count / self._draws.size

    def __getitem__(self, row: int) -> tuple[Slot, ...]:
        """The clips of a row, 0, 1, 2 ... without end."""
        plan = self._plan(row // self.rows)
        # Every plan stands for as many rows as the first one; the few more or fewer are left out or come twice.
        return plan[row % self.rows % len(plan)]

    def _make_plan(self, index):
        draw = np.random.default_rng((self._seed, index))
        order = self._draws.block(index)
        captions = np.floor(draw.random(len(order)) * self._captions[order]).astype(int)
        captions[draw.random(len(order)) < self._dropout] = -1
        needs = np.stack([self._patches[order], self._tokens[order, captions], np.ones_like(order)], axis=1)
        rows = first_fit(needs, self._room)
        slots = [tuple(Slot(int(order[i]), int(captions[i])) for i in row) for row in rows]
        return [slots[i] for i in draw.permutation(len(slots))]  # or the last rows, the emptiest, always came last


def pack_in_order(
    patches: np.ndarray, tokens: np.ndarray, *, sequence_length: int, text_length: int, clips_per_sequence: int
) -> list[list[int]]:
    """PackedSequences that hold every clip once, each with one caption of so many tokens: for validation.

    Raises: InputError if a clip or a caption is larger than a row.
    """
    check_room(patches, tokens, sequence_length, text_length)
    needs = np.stack([patches, tokens, np.ones(len(patches), np.int64)], axis=1)
    return first_fit(needs, np.array([sequence_length, text_length, clips_per_sequence]))


def check_room(patches: np.ndarray, tokens: Sequence[int], sequence_length: int, text_length: int):
    """Raise InputError if a clip of so many patches, or a caption of so many tokens, is larger than a row."""
    patches, tokens = np.asarray(patches), np.asarray(tokens)
    if patches.max() > sequence_length:
        count = int((patches > sequence_length).sum())
        raise InputError(
            f"config.data.sequence_length: {sequence_length} patches are too few for {count} of "
            f"{len(patches)} clips; "
            f"the largest needs {patches.max()}"
        )
    if tokens.max() > text_length:
        raise InputError(
            f"config.data.text_length: {text_length} tokens are too few; the longest caption has {tokens.max()}"
        )


def first_fit(needs: np.ndarray, room: np.ndarray) -> list[list[int]]:
    """PackedSequences of items, each item in the first open row that has room for it; rows open up to a bound.

    Args:
      needs: of each item, in any number of measures, [n, m] int.
      room: of each row, [m] int.
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = []
    left = np.zeros((0, len(room)), np.int64)
    for i, need in enumerate(needs):
        fits = (left >= need).all(axis=1)
        if fits.any():
            row = int(fits.argmax())
        else:
            if len(open_rows) == _OPEN_ROWS:
                fullest = int(left[:, 0].argmin())
                rows.append(open_rows.pop(fullest))
                left = np.delete(left, fullest, axis=0)
            open_rows.append([])
            left = np.concatenate([left, room[None]])
            row = len(open_rows) - 1
        open_rows[row].append(i)
        left[row] -= need
    return rows + open_rows
