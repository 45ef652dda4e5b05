"""Echoes: while it learns, a clip shows itself once more through the noise, weaker and elsewhere in the picture.

Where a thing is to be a sampler decides over several steps, and its state can then hold the thing in two places,
which no clip under noise does. A model that was never shown such a state keeps what it sees: it makes two. With
echoes it learns that the stronger one counts. That a sampler's states are others than those of training is told
in Ning et al. 2023 (arXiv 2301.11706), whose remedy is more noise; this one is of what goes wrong with places.
"""

from collections.abc import Sequence

import numpy as np

from sora_jax.config.schema import Settings
from sora_jax.core.patches import PatchBatch, clip_slices, patchify, unpatchify

# An echo is at most this strong: of two that are alike, nothing says which one counts.
STRONGEST = 0.9
# Sets these draws apart from others of the same seed.
_STREAM = 7


def add_ghosts(batch: PatchBatch, numbers: Sequence[int], settings: Settings) -> PatchBatch:
    """The batch (numpy) with echoes of its clips, a function of (seed, number of the row, clip in the row).

    Args:
      batch: with what is given of each clip; there is no echo in it.
      numbers: of its rows.
    Returns: the batch with `echoes`, for a share flow.ghosts of the clips; as it is, if that is 0.
    """
    if not settings.flow.ghosts:
        return batch
    ghosts = np.zeros_like(batch.patches)
    for b, number in enumerate(numbers):
        clips = clip_slices(batch.segment_ids[b])
        drawn = np.random.default_rng((settings.data.shuffle_seed, number, _STREAM)).random((len(clips), 3))
        for mine, (chance, strength, moved) in zip(clips, drawn.tolist(), strict=True):
            if chance < settings.flow.ghosts:
                grid = tuple((batch.positions[b, mine][-1] + 1).tolist())
                patches = batch.patches[b, mine].astype(np.float32)
                latents = unpatchify(patches, grid, settings.transformer.patch)
                echo = STRONGEST * strength * ghost_of(latents, moved)
                ghosts[b, mine] = patchify(echo, settings.transformer.patch)
    ghosts[batch.conditioning_mask] = 0
    return batch.replace(ghosts=ghosts)


def ghost_of(latents: np.ndarray, moved: float) -> np.ndarray:
    """What stands out from the ground of latents [F, H, W, C], elsewhere: at one other place in all frames.

    The ground of each row of the picture is the median over its columns, so that it may change from top to bottom.
    What leaves the picture at one side comes back at the other.

    Args:
      moved: from 0 to 1, over all places but its own.
    """
    _, H, W, _ = latents.shape
    place = 1 + int(moved * (H * W - 1))
    return np.roll(latents - np.median(latents, axis=2, keepdims=True), divmod(place, W), axis=(1, 2))
