"""Wan's models in ours: outputs recorded from diffusers and transformers, and their weights in and out."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
import safetensors
import tiny
from wan_cases import (
    CASES,
    IMAGE,
    TEXT,
    TRANSFORMERS,
    our_image,
    our_text,
    our_velocity,
    random_tensors,
    transformer_params,
)

from sora_jax.checkpoint.model_folder import named
from sora_jax.core.errors import InputError
from sora_jax.interop.tables import foreign_shapes, load_foreign, to_foreign
from sora_jax.interop.wan.tables import TRANSFORMERS as PUBLISHED
from sora_jax.interop.wan.tables import UMT5_XXL, autoencoder_table, image_table, text_table, transformer_table
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.dit import DiT
from sora_jax.models.image_encoder import ImageEncoder
from sora_jax.models.text_encoder import TextEncoder

TEXT_64 = dataclasses.replace(TEXT, head_dim=64)  # as published; its square root is a whole number
GOLDENS = pathlib.Path(__file__).parent.parent / "goldens" / "wan.safetensors"
I2V = TRANSFORMERS["i2v"]


def assert_as_recorded(name, ours):
    with safetensors.safe_open(GOLDENS, framework="numpy") as file:
        theirs = file.get_tensor(name)
    assert np.std(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", list(TRANSFORMERS))
def test_velocity_equals_that_recorded_from_diffusers(case, one_device):
    assert_as_recorded(f"velocity.{case}", our_velocity(case))


def test_text_equals_that_recorded_from_transformers(one_device):
    assert_as_recorded("text", our_text())


def test_image_features_equal_those_recorded_from_transformers(one_device):
    assert_as_recorded("image", our_image())


@pytest.mark.parametrize(
    "module_class, table, settings",
    [
        *((DiT, transformer_table(s), s) for s in TRANSFORMERS.values()),
        *((Autoencoder, autoencoder_table(s), s) for s in CASES.values()),
        (TextEncoder, text_table(TEXT_64), TEXT_64),
        (ImageEncoder, image_table(IMAGE), IMAGE),
    ],
    ids=[*TRANSFORMERS, *CASES, "text", "image"],
)
def test_weights_go_in_and_out_bit_by_bit(module_class, table, settings, one_device):
    tensors = random_tensors(foreign_shapes(table, module_class, settings))
    params = load_foreign(tensors, table, module_class, settings, where="random")
    back = dict(to_foreign(table, dict(named(params))))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_velocity_is_the_same_on_a_mesh(one_device):
    alone = our_velocity("flf2v")
    with jax.set_mesh(tiny.mesh_of(fsdp=2, ulysses=2, tensor=2)):
        kernel = transformer_params("flf2v")["blocks"]["mlp"]["up"]["kernel"]
        assert kernel.addressable_shards[0].data.size * 8 == kernel.size
        np.testing.assert_allclose(our_velocity("flf2v"), alone, atol=1e-5)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"blocks.1.attn1.to_q.weight": None}, "tensor 'blocks.1.attn1.to_q.weight' is missing; did you mean"),
        ({"blocks.9.attn1.to_q.weight": 48}, "tensor 'blocks.9.attn1.to_q.weight' has no place in the model"),
        ({"proj_out.weight": 8}, "tensor 'proj_out.weight' has shape [8, 8], the model asks for [16, 48]"),
        (
            {"patch_embedding.weight": 4},
            "'patch_embedding.weight' has shape [4, 4], the model asks for [48, 12, 1",
        ),
    ],
)
def test_weights_of_another_model_are_refused_by_name(change, words):
    table = transformer_table(I2V)
    with jax.set_mesh(tiny.mesh_of()):
        tensors = random_tensors(foreign_shapes(table, DiT, I2V))
        for name, side in change.items():
            tensors.pop(name, None)
            if side:
                tensors[name] = np.zeros((side, side), np.float32)
        with pytest.raises(InputError) as error:
            load_foreign(tensors, table, DiT, I2V, where="folder")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "name, billions",
    [("wan2.1-t2v-1.3b", 1.419), ("wan2.1-t2v-14b", 14.288), ("wan2.1-i2v-14b", 16.395), ("wan2.2-ti2v-5b", 5.0)],
)
def test_published_transformers_have_the_published_number_of_parameters(name, billions, one_device):
    settings = PUBLISHED[name]
    shapes = foreign_shapes(transformer_table(settings), DiT, settings)
    assert sum(np.prod(s) for s in shapes.values()) / 1e9 == pytest.approx(billions, abs=0.001)
    text = foreign_shapes(text_table(UMT5_XXL), TextEncoder, UMT5_XXL)
    assert sum(np.prod(s) for s in text.values()) / 1e9 == pytest.approx(5.68, abs=0.01)
