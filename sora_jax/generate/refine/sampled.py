"""Sampled videos that a refiner makes larger while they are decoded."""

import itertools
from collections.abc import Iterator

import numpy as np

from sora_jax.generate.parts import Part
from sora_jax.generate.refine.refiner import Refiner
from sora_jax.generate.refine.stream import refined
from sora_jax.generate.request import SEEDS
from sora_jax.generate.sampling.sampler import LongVideos, ShortVideos


class RefinedVideos:
    """The refined frames of the videos of a part.

    Args:
      source: of the frames as they are sampled.
    """

    def __init__(self, source: ShortVideos | LongVideos, part: Part, refiner: Refiner):
        self._source, self._part, self._refiner = source, part, refiner

    def frames(self, number: int) -> Iterator[np.ndarray]:
        """The frames of video `number`, chunk by chunk, [F, H, W, 3] uint8."""
        request, target = self._part.request, self._part.target
        sampled = itertools.chain.from_iterable(self._source.frames(number))
        seed = (request.seed + request.first + number) % SEEDS
        prompt = request.prompts[number]
        return refined(self._refiner, sampled, target.sizes, factor=target.factor, prompt=prompt, seed=seed)

    def finish(self, number: int):
        """Called when video `number` is on disk."""
        self._source.finish(number)
