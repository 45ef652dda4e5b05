"""Refined frames as a stream: window after window, each given the refined end of the last; memory is constant."""

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np

from sora_jax.data.frame_rate import blended
from sora_jax.data.media.resize import AREA, BICUBIC, padded, resized
from sora_jax.generate.refine.refiner import Refiner, Window, WindowRefiner
from sora_jax.generate.sampling.long_videos import context_frames
from sora_jax.generate.tasks import Coder
from sora_jax.models.autoencoder.streaming import decode_more, encode_stream
from sora_jax.models.encode_packed import trust_of_latents

TIMES = 2  # of back-projection: enlarging and halving again is not quite the same picture


def sizes_between(source: tuple[int, int], size: tuple[int, int], scale: float) -> list[tuple[int, int]]:
    """The (height, width) after each pass, from a source's to the wanted one, none larger than `scale` allows."""
    ratio = max(big / small for big, small in zip(size, source, strict=True))
    passes = max(1, math.ceil(math.log(ratio) / math.log(scale) - 1e-6)) if scale > 1 else 1
    between = [[side * ratio ** (i / passes) for side in source] for i in range(1, passes)]
    return [*((2 * round(h / 2), 2 * round(w / 2)) for h, w in between), size]


def refined(
    refiner: Refiner,
    frames: Iterable[np.ndarray],
    sizes: list[tuple[int, int]],
    *,
    factor: int = 1,
    prompt: str = "",
    seed: int = 0,
    back_projection: float = 1.0,
) -> Iterator[np.ndarray]:
    """The frames of a video, refined, chunk by chunk, [F, H, W, 3] uint8.

    Args:
      frames: [h, w, 3] uint8, one after the other.
      sizes: (height, width) after each pass, from `sizes_between`.
      factor: of the frame rate; made in the first pass.
      back_projection: share of the input's low frequencies that replaces the output's, in [0, 1].
    """
    for i, size in enumerate(sizes):
        one = OnePass(refiner, size, prompt, seed + i, back_projection)
        chunks = one.run(blended(frames, factor if i == 0 else 1))
        frames = itertools.chain.from_iterable(chunks)
    return chunks


class OnePass:
    """One pass over a video. Arguments: as for `refined`."""

    def __init__(self, refiner: Refiner, size, prompt: str, seed: int, back_projection: float):
        self._windows = WindowRefiner(refiner, prompt, seed)
        self._size, self._cell, self._share = size, refiner.cell, back_projection
        generator, patch = refiner.generator, refiner.settings.transformer.patch
        self._coder = Coder(generator.autoencoder_params, generator.autoencoder, patch[1:])
        self._tile = refiner.settings.refine.autoencoder_tile // generator.autoencoder.spatial_stride
        self._latents = (refiner.frames - 1) // self._coder.stride + 1

    def run(self, frames: Iterator[tuple[np.ndarray, float]]) -> Iterator[np.ndarray]:
        """Refined chunks of frames that come with the trust in each."""
        stride, coder = self._coder.stride, self._coder
        context = context_frames(self._latents)
        given = 1 + stride * (context - 1)
        before, done, cache = [], np.zeros((0, *self._size, 3), np.uint8), None
        for number in itertools.count():
            new = list(itertools.islice(frames, 1 + stride * (self._latents - 1) - len(before)))
            if not new:
                return
            low = np.stack([frame for frame, _ in before + new])
            trust = np.array([share for _, share in before + new], np.float32)
            window = self._window(low, trust, done, number)
            made = self._windows.refine(window)[len(window.known) : window.count]
            chunk, cache = decode_more(coder.params, coder.settings, made, cache, tile=self._tile)
            chunk = chunk[: len(new), : self._size[0], : self._size[1]]
            chunk = back_projected(chunk, low[len(before) :], trust[len(before) :] == 1, self._share)
            before, done = (before + new)[-given:], np.concatenate([done, chunk])[-given:]
            yield chunk

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        """Latents of frames [F, H, W, 3] uint8, padded to whole patches."""
        coder = self._coder
        stream = encode_stream(coder.params, coder.settings, padded(frames, self._cell), tile=self._tile)
        return np.concatenate(list(stream))

    def _window(self, low, trust, done, number) -> Window:
        """The latents of a window, with zeros beyond the end of the video."""
        stride = self._coder.stride
        missing = -(len(low) - 1) % stride
        low = np.concatenate([low, np.repeat(low[-1:], missing, axis=0)])
        trust = np.concatenate([trust, np.repeat(trust[-1:], missing)])
        latents = self._encode(resized(low, self._size, BICUBIC))
        beyond = self._latents - len(latents)
        of_latents = np.asarray(trust_of_latents(trust, stride))
        return Window(
            np.pad(latents, ((0, beyond), (0, 0), (0, 0), (0, 0))),
            np.pad(of_latents, ((0, beyond), (0, 0))),
            self._encode(done) if len(done) else latents[:0],
            len(latents),
            number,
        )


def back_projected(made: np.ndarray, low: np.ndarray, real: np.ndarray, share: float) -> np.ndarray:
    """Frames whose mean over areas is the input: what they lack of it is enlarged and added.

    Args:
      made: [F, H, W, 3] uint8; low: [F, h, w, 3] uint8.
      real: frames to correct, [F] bool; blended ones are not to be copied.
      share: of the correction, in [0, 1].
    Returns: as made. Source: Irani & Peleg 1991, "Improving resolution by image registration", eq. 3.
    """
    if not share or not real.any():
        return made
    size, wanted = low.shape[1:3], low[real].astype(np.float32)
    x = made[real].astype(np.float32)
    for _ in range(TIMES):
        x = x + share * resized(wanted - resized(x, size, AREA), made.shape[1:3], BICUBIC)
    out = made.copy()
    out[real] = np.rint(x.clip(0, 255)).astype(np.uint8)
    return out
