"""Our autoencoder against diffusers' AutoencoderKLWan with the same random weights, float32."""

import functools

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install sora_jax[parity]")
pytest.importorskip("diffusers", reason="parity needs diffusers: pip install sora_jax[parity]")

import torch
from diffusers_autoencoder import build_theirs, decode_theirs, encode_theirs, make_theirs
from diffusers_wan import shapes_of
from wan_cases import CASES, autoencoder_params, random_latents, random_video

from sora_jax.interop.tables import foreign_shapes
from sora_jax.interop.wan.tables import WAN21_AUTOENCODER, WAN22_AUTOENCODER, autoencoder_table
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import bind

pytestmark = pytest.mark.parity
LIMIT = 1e-5  # max abs error; 1e-4 would let an epsilon of the norm slip through
FRAMES = (1, 5, 17, pytest.param(33, marks=pytest.mark.exhaustive))


@pytest.fixture(scope="module", params=list(CASES))
def pair(request):
    settings = CASES[request.param]
    return settings, make_theirs(settings), autoencoder_params(settings)


@pytest.mark.parametrize("settings", [WAN21_AUTOENCODER, WAN22_AUTOENCODER], ids=["wan21", "wan22"])
def test_published_sizes_have_a_place_for_every_tensor(settings):
    with torch.device("meta"):
        theirs = shapes_of(build_theirs(settings))
    assert foreign_shapes(autoencoder_table(settings), Autoencoder, settings) == theirs


@functools.partial(jax.jit, static_argnums=0)
def encode(settings, params, video):
    return bind(Autoencoder, settings, params).encode(video)


@functools.partial(jax.jit, static_argnums=0)
def decode(settings, params, latents):
    return bind(Autoencoder, settings, params).decode(latents)


@pytest.mark.parametrize("frames", FRAMES)
def test_encode_equals_diffusers(pair, frames):
    settings, model, params = pair
    video = random_video(frames)
    ours, theirs = encode(settings, params, video), encode_theirs(model, video)
    errors = [float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)]
    print(f"encode, {frames} frames: mean, logvar differ by at most {errors}")
    assert np.std(theirs[0]) > 0.1
    assert max(errors) <= LIMIT


@pytest.mark.parametrize("frames", FRAMES)
def test_decode_equals_diffusers(pair, frames):
    settings, model, params = pair
    latents = random_latents(frames, settings)
    ours, theirs = decode(settings, params, latents), decode_theirs(model, latents)
    error = float(np.abs(np.clip(ours, -1, 1) - theirs).max())
    print(f"decode, {frames} frames: pixels differ by at most {error}")
    assert np.std(theirs) > 0.05
    assert np.mean(np.abs(theirs) == 1) < 0.01  # clipped pixels would hide errors
    assert error <= LIMIT
