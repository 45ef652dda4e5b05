"""Pairs for a refiner: a crop of a clip, and what a worse camera, a codec or a generator would have made of it."""

import math

import numpy as np
from scipy.ndimage import gaussian_filter

from sora_jax.config.load import parse_size
from sora_jax.config.refining import RefineSettings
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.data.frame_rate import slowed
from sora_jax.data.loader.mixture import Mixture
from sora_jax.data.loader.sequences import PackedSequences
from sora_jax.data.media.resize import AREA, BICUBIC, resized
from sora_jax.data.media.write import recompressed

# Separates these random draws from others of the same seed.
_STREAM = 9
_FACTORS = (2, 3, 4)  # of the frame rate


class PairedSequences(PackedSequences):
    """Crops of a split's clips with their inputs, packed into sequences; the step encodes both.

    Args: as for `PackedSequences`, with config.refine.
    Raises: InputError as it does, and for a crop that is no whole patches or larger than a clip.
    """

    def __init__(self, settings: Settings, split: str):
        crop = parse_size(settings.data.crop_size, "config.data.crop_size")
        if isinstance(crop, int):
            raise InputError(f"config.data.crop_size: {settings.data.crop_size!r} must be WIDTHxHEIGHT")
        self._crop = crop
        super().__init__(settings, split)
        self._generated = self._match_generated() if settings.refine.generated else {}
        if settings.refine.generated:
            note = f"{len(self._generated)} of {len(self._clips)} {split} clips have a generated input"
            self.notes = (*self.notes, note)

    def _pixel_shape(self, clip):
        if any(side < cut for side, cut in zip(clip.shape[1:3], self._crop, strict=True)):
            raise InputError(
                f"config.data.crop_size: {self._settings.data.crop_size} is larger than a clip of "
                f"{clip.width}x{clip.height} in {self.records.path}"
            )
        return (clip.shape[0], *self._crop, 3)

    def _match_generated(self) -> dict[int, int]:
        """By the number of a clip, that of its generated input.

        Raises: InputError if none is there, or one has another size than config.refine.scale says.
        """
        self._low = Mixture(self._settings.refine.generated, "pixels", where="config.refine.generated")
        held = {(c.source, round(c.start, 3)): i for i, c in enumerate(self._low.clips(self._split))}
        matched = {}
        for i, clip in enumerate(self._clips):
            if (found := held.get((clip.source, round(clip.start, 3)))) is not None:
                low = self._low.clips(self._split)[found] if not matched else None
                wanted = (clip.shape[0], *low_size(clip.shape[1:3], self._settings.refine.scale))
                if low and low.shape[:3] != wanted:
                    raise InputError(
                        f"config.refine.generated: {low.source} has {low.frames} frames of "
                        f"{low.width}x{low.height}, "
                        f"its truth asks for {wanted[0]} of {wanted[2]}x{wanted[1]}"
                    )
                matched[i] = found
        if not matched:
            raise InputError(
                f"config.refine.generated: no clip in {self._low.path} has the name of one in {self.records.path}"
            )
        return matched

    def _empty_batch(self, B, first):
        batch = super()._empty_batch(B, first)
        trust = np.ones(batch.pixels.shape[:3], np.float32)
        return batch.replace(low=np.zeros_like(batch.pixels), trust=trust)

    def _put_pixels(self, row, place, slot, record, number):
        truth = record["pixels"]
        draw = np.random.default_rng((self._settings.data.shuffle_seed, number, place, _STREAM))
        settings, scale = self._settings.refine, self._settings.refine.scale
        low = resized(truth, low_size(truth.shape[1:3], scale), AREA)
        if draw.random() < settings.generated_share and slot.clip in self._generated:
            low = self._low.read(self._split, self._generated[slot.clip])
        low, trust = degraded(low, draw, settings)
        up = resized(low, truth.shape[1:3], BICUBIC)
        starts = (
            int(draw.integers(side - cut + 1)) for side, cut in zip(truth.shape[1:3], self._crop, strict=True)
        )
        crop = tuple(slice(start, start + cut) for start, cut in zip(starts, self._crop, strict=True))
        row.pixels[place], row.low[place], row.trust[place] = truth[:, *crop], up[:, *crop], trust


def low_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) of the input for an output of this size: even, as codecs need it."""
    rows, columns = (max(2, 2 * round(side / scale / 2)) for side in size)
    return rows, columns


def degraded(
    low: np.ndarray, draw: np.random.Generator, settings: RefineSettings
) -> tuple[np.ndarray, np.ndarray]:
    """An input made worse at random: slowed, blurred, compressed, noisy; the same for all frames but the noise.

    Args:
      low: [F, H, W, 3] uint8.
    Returns: the same shape; the trust in each frame, [F] float32.
    """
    slow, factor, blur, grain, compressed, crf = draw.random(6)
    trust = np.ones(len(low), np.float32)
    if slow < settings.slowed and len(low) > 2:
        low, trust = slowed(low, _FACTORS[int(factor * len(_FACTORS))])
    # Half of the inputs are as sharp as their size allows.
    sigma = settings.blur * max(0.0, 2 * blur - 1)
    if sigma:
        low = gaussian_filter(low, (0, sigma, sigma, 0), mode="nearest")
    if compressed < settings.compressed:
        first, last = settings.crf
        low = recompressed(low, first + math.floor(crf * (last - first + 1)))
    deviation = 255 * settings.grain * max(0.0, 2 * grain - 1)
    if deviation:
        noisy = low + deviation * draw.standard_normal(low.shape, np.float32)
        low = np.rint(noisy.clip(0, 255)).astype(np.uint8)
    return low, trust
