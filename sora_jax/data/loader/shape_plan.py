"""Plan rows whose clips are encoded in the step: each batch of one shape, as a program knows its shapes."""

from collections.abc import Sequence

import numpy as np

from sora_jax.data.loader.mixture import ClipOrder
from sora_jax.data.loader.packing import Slot, check_room


class ShapePlan:
    """Which clips lie in which row, for ever; the rows of a batch hold clips of one shape, all equally many.

    Row i is a function of (seed, i). How often a shape comes follows from the share of the clips that have it, and
    is exact over each block of `ClipOrder`; the clips of a shape run through epochs of their own.

    Args:
      patches: of each clip, [n].
      tokens: of each caption of each clip, its end token included, n tuples.
      alike: the clips of each shape, and how many of them a row holds.
      batch: rows of a batch.
      sets, weights: as `ClipOrder` takes them.
      sequence_length, text_length: what a row has room for.
      dropout: share of the captions dropped.
      seed: of all of it.
    Raises: InputError if a clip or a caption is larger than a row.
    """

    def __init__(
        self,
        patches: np.ndarray,
        tokens: list[tuple[int, ...]],
        alike: list[tuple[np.ndarray, int]],
        *,
        batch: int,
        sets: Sequence[np.ndarray],
        weights: Sequence[float],
        sequence_length: int,
        text_length: int,
        dropout: float,
        seed: int,
    ):
        check_room(patches, [max(lengths) for lengths in tokens], sequence_length, text_length)
        self._captions = [len(lengths) for lengths in tokens]
        self._batch, self._dropout, self._seed = batch, dropout, seed
        self._per_row = np.array([room for _, room in alike])
        weights = np.array(weights) / np.sum(weights)
        # Of all clips that come, the share of those of a data set that have a shape: [shapes, sets].
        shares = np.array([[np.isin(s, clips).mean() for s in sets] for clips, _ in alike]) * weights
        of_batches = shares.sum(axis=1) / self._per_row
        of_batches /= of_batches.sum()
        self._shapes = ClipOrder([np.array([i]) for i in range(len(alike))], of_batches, seed=seed)
        self._clips = [
            ClipOrder(
                [s[np.isin(s, clips)] for s, share in zip(sets, of, strict=True) if share], of[of > 0], seed=seed
            )
            for (clips, _), of in zip(alike, shares, strict=True)
        ]
        mean = of_batches @ self._per_row
        self.sequences_per_epoch = len(patches) / mean
        self.fill = float(of_batches @ [room * patches[clips[0]] for clips, room in alike]) / sequence_length

    def __getitem__(self, row: int) -> tuple[Slot, ...]:
        """The clips of a row, 0, 1, 2 ... without end."""
        number, place = divmod(row, self._batch)
        shape, before = self._shapes.turn(number)
        first = (before * self._batch + place) * self._per_row[shape]
        clips = [self._clips[shape][first + i] for i in range(self._per_row[shape])]
        draw = np.random.default_rng((self._seed, row, 6))
        return tuple(
            Slot(clip, -1 if draw.random() < self._dropout else int(draw.integers(self._captions[clip])))
            for clip in clips
        )
