"""Plan sequences whose clips are encoded in the training step: all clips of a batch have one shape."""

from collections.abc import Sequence

import numpy as np

from sora_jax.config.schema import DataSettings
from sora_jax.data.loader.mixture import ClipOrder
from sora_jax.data.loader.packing import Slot, check_capacity


class ShapePlan:
    """The clips of each sequence, without end; the sequences of a batch hold equally many clips of one shape.

    Sequence i is a function of (seed, i). How often a shape comes follows from the share of the clips that have
    it, exactly over each block of `ClipOrder`; the clips of a shape run through epochs of their own.

    Args:
      patches: number of patches of each clip, [n].
      tokens: number of tokens of each caption of each clip, end token included; n tuples.
      shapes: for each shape, its clips' indices and their number in a sequence.
      sets, weights: the data sets' clips and weights, as for `ClipOrder`.
      data: batch, sequence_length, text_length, caption_dropout and shuffle_seed.
    Raises: InputError if a clip or a caption is longer than a sequence.
    """

    def __init__(
        self,
        patches: np.ndarray,
        tokens: list[tuple[int, ...]],
        shapes: list[tuple[np.ndarray, int]],
        sets: Sequence[np.ndarray],
        weights: Sequence[float],
        data: DataSettings,
    ):
        check_capacity(patches, [max(lengths) for lengths in tokens], data)
        self._captions = [len(lengths) for lengths in tokens]
        self._data = data
        self._clips_per_sequence = np.array([room for _, room in shapes])
        weights = np.array(weights) / np.sum(weights)
        # The share of all clips that are of a data set and have a shape: [shapes, sets].
        shares = np.array([[np.isin(s, clips).mean() for s in sets] for clips, _ in shapes]) * weights
        batches = shares.sum(axis=1) / self._clips_per_sequence  # the share of the batches that have a shape
        batches /= batches.sum()
        self._shapes = ClipOrder([np.array([i]) for i in range(len(shapes))], batches, seed=data.shuffle_seed)
        self._clips = [
            ClipOrder(
                [s[np.isin(s, clips)] for s, share in zip(sets, of_sets, strict=True) if share],
                of_sets[of_sets > 0],
                seed=data.shuffle_seed,
            )
            for (clips, _), of_sets in zip(shapes, shares, strict=True)
        ]
        self.sequences_per_epoch = len(patches) / (batches @ self._clips_per_sequence)
        used = float(batches @ [room * patches[clips[0]] for clips, room in shapes])
        self.fill = used / data.sequence_length

    def __getitem__(self, number: int) -> tuple[Slot, ...]:
        """The clips of sequence 0, 1, 2, ..., without end."""
        batch, place = divmod(number, self._data.batch)
        shape, before = self._shapes.turn(batch)
        count = self._clips_per_sequence[shape]
        first = (before * self._data.batch + place) * count
        clips = [self._clips[shape][first + i] for i in range(count)]
        draw = np.random.default_rng((self._data.shuffle_seed, number, 6))
        return tuple(
            Slot(
                clip,
                -1 if draw.random() < self._data.caption_dropout else int(draw.integers(self._captions[clip])),
            )
            for clip in clips
        )
