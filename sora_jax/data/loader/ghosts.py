"""Ghost augmentation: in training, the noisy input of a clip also holds a weaker, shifted copy of the clip.

A sampler fixes the position of an object over several steps, and its state may hold the object in two places, as
noisy training clips never do. A model without this augmentation keeps both and makes two objects; with it, the
model learns to keep the stronger one. Ning et al. 2023 (arXiv 2301.11706) describe this exposure bias of diffusion
models and add more noise; this augmentation covers positions.
"""

from collections.abc import Sequence

import numpy as np

from sora_jax.config.schema import Settings
from sora_jax.core.patches import PatchBatch, clip_slices, patchify, unpatchify

# Largest strength of a ghost: of two equally strong copies, nothing says which one to keep.
STRONGEST = 0.9
# Separates these random draws from others of the same seed.
_STREAM = 7


def add_ghosts(batch: PatchBatch, numbers: Sequence[int], settings: Settings) -> PatchBatch:
    """The batch with ghosts of a share flow.ghosts of its clips, a function of (seed, sequence, clip in it).

    Args:
      batch: of numpy arrays, with conditioning masks and without ghosts.
      numbers: of its sequences.
    Returns: the batch with `ghosts`; the same batch if the share is 0.
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
                ghost = STRONGEST * strength * ghost_of(latents, moved)
                ghosts[b, mine] = patchify(ghost, settings.transformer.patch)
    ghosts[batch.conditioning_mask] = 0
    return batch.replace(ghosts=ghosts)


def ghost_of(latents: np.ndarray, moved: float) -> np.ndarray:
    """The foreground of latents, shifted by the same offset in all frames, wrapping around at the edges.

    The background of each row is the median over its columns, so that it may change from top to bottom.

    Args:
      latents: [F, H, W, C].
      moved: in [0, 1); which offset, among all but none.
    Returns: [F, H, W, C].
    """
    _, H, W, _ = latents.shape
    place = 1 + int(moved * (H * W - 1))
    return np.roll(latents - np.median(latents, axis=2, keepdims=True), divmod(place, W), axis=(1, 2))
