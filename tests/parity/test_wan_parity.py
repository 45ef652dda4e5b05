"""Our transformer, text and image encoder against diffusers and transformers with the same weights, float32."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install sora_jax[parity]")
pytest.importorskip("diffusers", reason="parity needs diffusers: pip install sora_jax[parity]")
pytest.importorskip("transformers", reason="parity needs transformers: pip install sora_jax[parity]")

import torch
from diffusers_wan import (
    build_image,
    build_text,
    build_transformer,
    shapes_of,
    their_image,
    their_text,
    their_velocity,
)
from wan_cases import TRANSFORMERS, our_image, our_text, our_velocity

from sora_jax.config.schema import ImageSettings
from sora_jax.interop.tables import foreign_shapes
from sora_jax.interop.wan import tables as wan
from sora_jax.models.dit import DiT
from sora_jax.models.image_encoder import ImageEncoder
from sora_jax.models.text_encoder import TextEncoder

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("one_device")]
LIMIT = 1e-5  # max abs error of outputs of about 1; the order of sums differs, and nothing else


def assert_close(ours, theirs):
    print(f"differ by at most {np.abs(ours - theirs).max():.1e}")
    assert ours.shape == theirs.shape and np.std(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=LIMIT, rtol=0)


@pytest.mark.parametrize("case", list(TRANSFORMERS))
def test_velocity_equals_diffusers(case):
    assert_close(our_velocity(case), their_velocity(case))


def test_text_equals_transformers_with_padding():
    assert_close(our_text(), their_text())


def test_image_features_equal_transformers():
    assert_close(our_image(), their_image())


@pytest.mark.parametrize("name", list(wan.TRANSFORMERS))
def test_published_transformers_have_a_place_for_every_tensor(name):
    settings = wan.TRANSFORMERS[name]
    with torch.device("meta"):
        theirs = shapes_of(build_transformer(settings))
    assert foreign_shapes(wan.transformer_table(settings), DiT, settings) == theirs


def test_published_encoders_have_a_place_for_every_tensor():
    with torch.device("meta"):
        text, image = shapes_of(build_text(wan.UMT5_XXL)), shapes_of(build_image(ImageSettings()))
    assert foreign_shapes(wan.text_table(wan.UMT5_XXL), TextEncoder, wan.UMT5_XXL) == text
    settings = ImageSettings()
    ours = foreign_shapes(wan.image_table(settings), ImageEncoder, settings)
    assert ours.keys() | wan.image_unused(image, settings) == image.keys()
    assert all(image[name] == shape for name, shape in ours.items())
