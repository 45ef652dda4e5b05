"""Several data sets as one, and the order of their clips in training.

`config.data.path` names one folder, or several with weights: "data/films:3,data/shapes:1". Then three of four
clips are of the first one, whatever the sizes of the two.
"""

import bisect
import functools
import itertools
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, digest, in_bucket
from sora_jax.data.records.records import SPLITS, Clip, Records

# Clips in a block: many, so that the half-filled sequences at its end do not count; few enough to plan quickly.
_MIN_BLOCK, _MAX_BLOCK = 2048, 65536


def parse_path(path: str, where: str = "config.data.path") -> list[tuple[str, float]]:
    """The folders and their weights; a weight is 1 unless given. Raises: InputError for an invalid weight."""
    if not in_bucket(path) and as_path(path).is_dir():
        return [(path, 1.0)]
    named = []
    for part in path.split(","):
        folder, colon, weight = part.strip().rpartition(":")
        try:
            number = float(weight) if colon else 1.0
        except ValueError:  # the colon belongs to the path
            folder, colon, number = part.strip(), "", 1.0
        named.append((folder if colon else part.strip(), number))
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"{where}: {part}: a weight above 0 is needed")
    folders = [folder for folder, _ in named]
    for folder in folders:
        if folders.count(folder) > 1:
            raise InputError(f"{where}: {folder} is named twice; give it the sum of its weights")
    return named


class Mixture:
    """Finished data sets, read as one: the clips of the first come first.

    Args:
      path: value of `config.data.path`.
      kind: what their records must hold, "pixels" or "latents".
      where: name of the path in error messages.
    Raises: InputError if one is absent, unfinished or of the other kind, or their latents are of different
      autoencoders.
    """

    def __init__(self, path: str | pathlib.Path, kind: str, *, where: str = "config.data.path"):
        named = parse_path(str(path), where)
        self.sets = [Records(folder, kind, where=where) for folder, _ in named]
        self.weights = [weight for _, weight in named]
        self.path, self.about = self.sets[0].path, self.sets[0].about
        self.tokenizer, self.autoencoder = self.sets[0].tokenizer, self.sets[0].autoencoder
        if kind == "latents":
            self.check_same("autoencoder", "--autoencoder={}/autoencoder")

    @property
    def digest(self) -> str:
        """A hash of all their files and of the weights."""
        sums = [sorted(records.sums.items()) for records in self.sets]
        return digest(sums if len(sums) == 1 else [sums, self.weights])

    def check_same(self, name: str, flag: str):
        """Raise InputError if a file or folder of a data set differs from that of the first one.

        Args:
          name: of the file or folder.
          flag: flag of `prepare` that makes them equal; {} stands for the first data set.
        """
        held = [{k: v for k, v in records.sums.items() if k.split("/")[0] == name} for records in self.sets]
        for records, files in zip(self.sets, held, strict=True):
            if files != held[0]:
                raise InputError(
                    f"config.data.path: {records.path} has another {name} than {self.path}; prepare it with "
                    f"{flag.format(self.path)}"
                )

    @functools.cached_property
    def _held(self):
        """By split: the clips of each data set, and the indices of the first ones."""
        by_split = {}
        for split in SPLITS:
            held = [[clip for clip in records.manifest if clip.split == split] for records in self.sets]
            by_split[split] = held, [0, *itertools.accumulate(map(len, held))]
        return by_split

    def clips(self, split: str) -> list[Clip]:
        """The manifests' lines of this split.

        Raises: InputError if there is none, or a data set has none to train on.
        """
        held, _ = self._held[split]
        for records, clips in zip(self.sets, held, strict=True):
            if not clips and (split == "train" or not any(held)):
                records.clips(split)  # says what is wrong
        return [clip for clips in held for clip in clips]

    def counts(self, split: str) -> list[int]:
        """Number of clips of this split in each data set."""
        return [len(clips) for clips in self._held[split][0]]

    def read(self, split: str, index: int) -> np.ndarray:
        """The array of clip `index`, as `Records.read` does."""
        return self.read_all(split, index)[self.about["kind"]]

    def read_all(self, split: str, index: int) -> dict[str, np.ndarray]:
        """The arrays of clip `index` by name, as `Records.read_all` does."""
        _, first = self._held[split]
        number = bisect.bisect_right(first, index) - 1
        return self.sets[number].read_all(split, index - first[number])


class ClipOrder:
    """The order of the clips in training, without end, in blocks: a function of (seed, number of the block).

    Each data set runs through epochs of its own, shuffled anew each time. The weights alone decide how many clips
    of a block are of which data set.

    count: number of clips.
    size: number of clips in a block.

    Args:
      sets: indices of the clips of each data set.
      weights: of each data set; they need not add up to 1.
      seed: of the order.
    """

    def __init__(self, sets: Sequence[np.ndarray], weights: Sequence[float] = (1.0,), *, seed: int = 0):
        # The last data set takes the rounding errors of the others' shares: the largest, which has room for them.
        self._order = np.argsort(weights, kind="stable")
        self._sets = [np.asarray(sets[i]) for i in self._order]
        self._shares = [weights[i] / math.fsum(weights) for i in self._order]
        self._seed = seed
        self.count = sum(len(clips) for clips in self._sets)
        # Whole epochs of a small data set, a part of one of a large one.
        self.size = (
            -(-_MIN_BLOCK // self.count) * self.count if self.count < _MIN_BLOCK else min(self.count, _MAX_BLOCK)
        )
        self.block = functools.lru_cache(maxsize=2)(self._block)  # threads read two blocks where one ends
        self._which = functools.lru_cache(maxsize=2)(self._sets_of)
        self._shuffled = functools.lru_cache(maxsize=2 * len(self._sets))(self._shuffle)

    def __getitem__(self, number: int) -> int:
        """The index of clip 0, 1, 2, ..., without end."""
        return int(self.block(number // self.size)[number % self.size])

    def turn(self, number: int) -> tuple[int, int]:
        """The data set of clip 0, 1, 2, ..., and how many clips of that set come before it."""
        index, place = divmod(number, self.size)
        which = self._which(index)
        before = self._begins(index)[which[place]] + np.count_nonzero(which[:place] == which[place])
        return int(self._order[which[place]]), int(before)

    def any(self, draw: np.random.Generator) -> int:
        """A random clip; data sets are drawn by weight."""
        return int(draw.choice(self._sets[draw.choice(len(self._sets), p=self._shares)]))

    def _block(self, index):
        """The clips of block 0, 1, 2, ..., [size]."""
        of_set = self._which(index)
        made = np.empty(self.size, np.int64)
        for which, (start, end) in enumerate(zip(self._begins(index), self._begins(index + 1), strict=True)):
            made[of_set == which] = self._run(which, start, end)
        return made

    def _sets_of(self, index):
        """The data set of each clip of a block, [size]."""
        numbers = np.subtract(self._begins(index + 1), self._begins(index))
        of_set = np.repeat(np.arange(len(numbers)), numbers)
        return np.random.default_rng((self._seed, index, 4)).permutation(of_set)

    def _begins(self, index):
        """The number of clips of each data set before block `index`."""
        before = [math.floor(index * self.size * share) for share in self._shares[:-1]]
        return [*before, index * self.size - sum(before)]

    def _run(self, which, start, end):
        """Clips start, ..., end - 1 of a data set's epochs."""
        n = len(self._sets[which])
        places = np.arange(start, end)
        made = np.empty(len(places), np.int64)
        for epoch in range(start // n, -(-end // n)):
            here = places // n == epoch
            made[here] = self._shuffled(which, epoch)[places[here] % n]
        return made

    def _shuffle(self, which, epoch):
        return np.random.default_rng((self._seed, which, epoch, 5)).permutation(self._sets[which])
