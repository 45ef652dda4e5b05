import jax
import numpy as np
import pytest

from sora_jax.core.errors import InputError
from sora_jax.core.patches import grid_positions, patch_grid, patchify, put_patches, unpatchify


@pytest.mark.parametrize(
    "shape, patch", [((3, 4, 6, 2), (1, 2, 2)), ((4, 6, 4, 3), (2, 3, 1)), ((1, 2, 2, 5), (1, 1, 2))]
)
def test_patchify_inverts(shape, patch):
    latents = np.random.default_rng(0).normal(size=(2, *shape))
    patches = patchify(latents, patch)
    grid = patch_grid(shape[:3], patch)
    assert patches.shape == (2, np.prod(grid), np.prod(patch) * shape[3])
    np.testing.assert_array_equal(unpatchify(patches, grid, patch), latents)
    row = np.zeros((len(patches[1]) + 3, patches.shape[-1]))
    put_patches(row[2:-1], latents[1], patch)
    np.testing.assert_array_equal(row[2:-1], patches[1])
    assert not row[:2].any()
    assert not row[-1].any()


def test_patch_order_is_frame_row_column_channel():
    # Two frames of 2 x 4 latents with two channels, numbered in memory order: frame, row, column, channel.
    latents = np.arange(2 * 2 * 4 * 2).reshape(2, 2, 4, 2)
    np.testing.assert_array_equal(
        patchify(latents, (1, 2, 2)),
        [
            [0, 1, 2, 3, 8, 9, 10, 11],  # frame 0, rows 0-1, columns 0-1
            [4, 5, 6, 7, 12, 13, 14, 15],  # frame 0, rows 0-1, columns 2-3
            [16, 17, 18, 19, 24, 25, 26, 27],
            [20, 21, 22, 23, 28, 29, 30, 31],
        ],
    )
    np.testing.assert_array_equal(grid_positions((2, 1, 2)), [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]])


def test_patchify_is_the_same_on_the_host_and_on_the_device(one_device):
    latents = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        jax.jit(patchify, static_argnums=1)(latents, (1, 2, 2)), patchify(latents, (1, 2, 2))
    )


def test_latents_that_are_no_multiple_of_the_patch_are_refused():
    with pytest.raises(InputError, match=r"\(1, 3, 4\).*no multiple of the patch \(1, 2, 2\)"):
        patch_grid((1, 3, 4), (1, 2, 2))
