"""Frames as CLIP takes them against Wan's formula in torch and against transformers' processor."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install sora_jax[parity]")
pytest.importorskip("transformers", reason="parity needs transformers: pip install sora_jax[parity]")

import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sora_jax.data.conditioning_frames import CLIP_MEAN, CLIP_STD, clip_preprocess

pytestmark = pytest.mark.parity
SIZES = [(480, 832), (720, 405), (224, 224), (100, 340)]


def frame_of(size):
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", SIZES)
def test_the_squashed_frame_equals_wans_formula(size):
    frame = frame_of(size)
    x = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float().div(255).sub(0.5).div(0.5)
    x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bicubic", align_corners=False)
    theirs = (x.mul(0.5).add(0.5)[0].permute(1, 2, 0).numpy() - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    np.testing.assert_allclose(clip_preprocess([frame], 224, "squash")[0], theirs, atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_cropped_frame_equals_transformers_processor(size):
    frame = frame_of(size)
    theirs = CLIPImageProcessorPil()(Image.fromarray(frame), return_tensors="np").pixel_values[0]
    np.testing.assert_allclose(clip_preprocess([frame], 224, "crop")[0], theirs.transpose(1, 2, 0), atol=1e-5)
