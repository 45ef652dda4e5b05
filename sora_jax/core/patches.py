"""Spacetime patches, the form of a video of any size, length and aspect ratio.

Every patch has a position, the clip that it belongs to, and whether it is conditioning. `patchify`, `unpatchify`
and `grid_positions` take numpy and JAX arrays alike: training makes patches on the host, sampling on the device.
"""

import itertools
import math

import jax
import numpy as np
from flax import struct

from sora_jax.core.errors import InputError


class PatchBatch(struct.PyTreeNode):
    """Packed sequences of patches, and of the text that describes them.

    patches: latent patches, [B, N, P] float, P = p_f * p_h * p_w * C in that order.
    positions: (frame, row, column) of each patch in its own clip's grid, [B, N, 3] int32.
    segment_ids: the clip of its sequence that a patch belongs to, 1 ... G; 0 = padding, [B, N] int32.
    conditioning_mask: True = given, clean, without loss, [B, N] bool.
    text: tokens [B, S] int32, or their embeddings [B, S, E].
    text_segment_ids: the clip of its sequence that a token describes; 0 = padding, [B, S] int32.
    time_index: which of its sequence's times a patch without conditioning has, 1 ..., [B, N] int32; None: its
      clip's.
    condition: patches of the channels beside the noise (data/conditioning_frames.py), [B, N, P_c] float.
    image: features of an image encoder, [B, I, E] float; image_segment_ids: their clips, [B, I] int32.
    ghosts: added to clean patches before the noise (data/loader/ghosts.py), [B, N, P] float.
    pixels: of clips that are not encoded yet, all of one shape, [B, k, F, H, W, 3] uint8, instead of patches.
    low: a refiner's inputs at the size of these pixels, [B, k, F, H, W, 3] uint8.
    trust: how far each frame of them is to be believed, in [0, 1], [B, k, F] float32: below 1 if it was blended.
    """

    patches: jax.Array | None
    positions: jax.Array
    segment_ids: jax.Array
    conditioning_mask: jax.Array
    text: jax.Array
    text_segment_ids: jax.Array
    time_index: jax.Array | None = None
    condition: jax.Array | None = None
    image: jax.Array | None = None
    image_segment_ids: jax.Array | None = None
    ghosts: jax.Array | None = None
    pixels: jax.Array | None = None
    low: jax.Array | None = None
    trust: jax.Array | None = None


def patch_grid(shape: tuple[int, int, int], patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Patches along (frames, rows, columns) of latents [F, H, W].

    Raises: InputError if a side is no multiple of the patch.
    """
    if any(side % p for side, p in zip(shape, patch, strict=True)):
        raise InputError(f"latents of {shape} (frames, rows, columns) are no multiple of the patch {patch}")
    frames, rows, columns = (side // p for side, p in zip(shape, patch, strict=True))
    return frames, rows, columns


def patchify(latents, patch: tuple[int, int, int]):
    """Latents [..., F, H, W, C] -> patches [..., N, P]; columns run fastest, in a clip and in a patch."""
    *batch, F, H, W, C = latents.shape
    f, h, w = patch_grid((F, H, W), patch)
    p_f, p_h, p_w = patch
    x = latents.reshape(*batch, f, p_f, h, p_h, w, p_w, C)
    x = x.transpose(*range(len(batch)), *(len(batch) + axis for axis in (0, 2, 4, 1, 3, 5, 6)))
    return x.reshape(*batch, f * h * w, p_f * p_h * p_w * C)


def put_patches(out: np.ndarray, latents: np.ndarray, patch: tuple[int, int, int]):
    """Write the patches of latents [F, H, W, C] into out [N, P]: `patchify` without a temporary array."""
    *shape, C = latents.shape
    f, h, w = patch_grid(tuple(shape), patch)
    p_f, p_h, p_w = patch
    x = latents.reshape(f, p_f, h, p_h, w, p_w, C).transpose(0, 2, 4, 1, 3, 5, 6)
    np.copyto(np.reshape(out, x.shape, copy=False), x)


def unpatchify(patches, grid: tuple[int, int, int], patch: tuple[int, int, int]):
    """Patches [..., N, P] of a clip of `grid` patches -> latents [..., F, H, W, C]; inverts `patchify`."""
    *batch, _, P = patches.shape
    (f, h, w), (p_f, p_h, p_w) = grid, patch
    x = patches.reshape(*batch, f, h, w, p_f, p_h, p_w, P // math.prod(patch))
    x = x.transpose(*range(len(batch)), *(len(batch) + axis for axis in (0, 3, 1, 4, 2, 5, 6)))
    return x.reshape(*batch, f * p_f, h * p_h, w * p_w, -1)


def clip_slices(segment_ids: np.ndarray) -> list[slice]:
    """The slices of a sequence's clips, from its segment_ids [N]; padding follows the clips."""
    ends = np.cumsum(np.bincount(segment_ids)[1:]).tolist()
    return [slice(*ends) for ends in itertools.pairwise([0, *ends])]


def grid_positions(grid: tuple[int, int, int]) -> np.ndarray:
    """(frame, row, column) of each patch of a clip, in the order of `patchify`, [N, 3] int32."""
    return np.stack(np.indices(grid), axis=-1).reshape(-1, 3).astype(np.int32)
