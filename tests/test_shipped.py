"""The weights that ship: small, and as good as their config says on clips that nobody trained on."""

import jax
import numpy as np
import tiny

from sora_jax.data.shapes import render, sample_scene
from sora_jax.evaluate.reconstruction import measure_reconstruction
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.settings import AutoencoderSettings
from sora_jax.weights.store import SHIPPED_AUTOENCODER, load_model

UNSEEN = 12345  # a seed of the world; its config trains on seed 0


def test_the_autoencoder_of_the_shapes_world_ships_and_reconstructs_unseen_clips():
    assert sum(path.stat().st_size for path in SHIPPED_AUTOENCODER.iterdir()) < 8e6
    with jax.set_mesh(tiny.mesh_of()):
        settings, params = load_model(SHIPPED_AUTOENCODER, Autoencoder, AutoencoderSettings)
        measured = []
        for index in range(8):
            video = render(sample_scene(UNSEEN, index, held_out=index % 2 == 0), frames=17, size=(64, 64))
            measured.append(measure_reconstruction(params, settings, video)[0])
    assert np.mean([values["psnr"] for values in measured]) > 33
    assert np.mean([values["ssim"] for values in measured]) > 0.96
