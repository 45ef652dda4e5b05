"""From prompt and image to frames: converted weights against diffusers' pipelines on the same folder, float32."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install sora_jax[parity]")
pytest.importorskip("diffusers", reason="parity needs diffusers: pip install sora_jax[parity]")
pytest.importorskip("transformers", reason="parity needs transformers: pip install sora_jax[parity]")

import jax
import safetensors.torch
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from transformers import CLIPVisionModel, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from wan_published import SHIFT, write_published

from sora_jax.cli.main import main
from sora_jax.core.patches import patch_grid, patchify, unpatchify
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.generate.generator import latent_shape, load_generator
from sora_jax.generate.sampling.clips import Noise
from sora_jax.generate.sampling.pipeline import sample_latents
from sora_jax.generate.tasks import animate
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import bind

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("one_device")]
PROMPTS, NEGATIVE = ["a rabbit", "a bird and a rabbit"], "two birds"
STEPS, GUIDANCE, LOW_GUIDANCE, SEED = 4, 5.0, 3.0, 3
FRAMES, HEIGHT = 9, 32
LATENT_LIMIT, FRAME_LIMIT = 1e-4, 1e-3  # of normalised latents, and of frames in [0, 1]


class TheirTokenizer:
    """Our sentencepiece model, asked as transformers' tokenizers are."""

    def __init__(self, path):
        self.tokenizer = Tokenizer(path)

    def __call__(self, texts, max_length, **_):
        rows = [self.tokenizer.encode(text, max_length) for text in texts]
        ids = torch.tensor([row + [0] * (max_length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (max_length - len(row)) for row in rows])
        return type("Encoded", (), {"input_ids": ids, "attention_mask": mask})


def their_transformer(folder):
    # Its from_pretrained needs accelerate, to keep some tensors in float32 that here are float32 anyway.
    model = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder))
    (weights,) = folder.glob("*.safetensors")
    model.load_state_dict(safetensors.torch.load_file(weights))
    return model.eval()


def their_videos(folder, latents, width, images) -> tuple[np.ndarray, np.ndarray]:
    """Latents [B, f, h, w, C] and frames [B, F, H, W, 3] in [0, 1]; the images are their ends."""
    pipeline_class, experts, parts, given = WanPipeline, {}, {}, {}
    if images:
        pipeline_class = WanImageToVideoPipeline
        given = dict(zip(("image", "last_image"), map(Image.fromarray, images), strict=False))
        index = json.loads((folder / "model_index.json").read_text())
        parts["expand_timesteps"] = index.get("expand_timesteps", False)
    if (folder / "image_encoder").exists():
        parts["image_encoder"] = CLIPVisionModel.from_pretrained(folder / "image_encoder")
        parts["image_processor"] = CLIPImageProcessorPil.from_pretrained(folder / "image_processor")
    if (folder / "transformer_2").exists():
        boundary = json.loads((folder / "model_index.json").read_text())["boundary_ratio"]
        experts = {"transformer_2": their_transformer(folder / "transformer_2"), "boundary_ratio": boundary}
    pipeline = pipeline_class(
        tokenizer=TheirTokenizer(folder / "tokenizer" / "spiece.model"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae"),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
        ),
        transformer=their_transformer(folder / "transformer"),
        **experts,
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    options = dict(
        prompt=PROMPTS,
        negative_prompt=[NEGATIVE] * len(PROMPTS),
        height=HEIGHT,
        width=width,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        guidance_scale_2=LOW_GUIDANCE if experts else None,
        latents=torch.from_numpy(np.moveaxis(latents, -1, 1).copy()),
        max_sequence_length=512,
        **given,
    )
    made = pipeline(**options, output_type="latent").frames
    return np.moveaxis(made.numpy(), 1, -1), pipeline(**options, output_type="np").frames


def picture(seed, width) -> np.ndarray:
    """Smooth colours, [H, W, 3] uint8."""
    few = np.random.RandomState(seed).randint(0, 256, (3, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(few).resize((width, HEIGHT), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    "case, boundary, width, images",
    [
        ("t2v", 0.0, 48, 0),
        pytest.param("t2v", 0.875, 48, 0, marks=pytest.mark.exhaustive),
        ("i2v", 0.0, 48, 1),
        ("flf2v", 0.0, 48, 2),
        ("i2v-a14b", 0.9, 48, 1),
        pytest.param("i2v-a14b", 0.9, 48, 2, marks=pytest.mark.exhaustive),
        ("ti2v", 0.0, 64, 1),
    ],
)
def test_frames_equal_diffusers_pipeline(tmp_path, case, boundary, width, images):
    published, workdir, back = tmp_path / "published", tmp_path / "workdir", tmp_path / "back"
    write_published(published, "float32", boundary=boundary, case=case)
    assert main(["convert", f"--from={published}", f"--to={workdir}"]) == 0
    assert main(["convert", f"--from={workdir}", f"--to={back}"]) == 0
    generator = load_generator(workdir, dtype="float32")
    settings, autoencoder = generator.settings, generator.autoencoder
    sample = dataclasses.replace(
        settings.sample, size=f"{width}x{HEIGHT}", frames=FRAMES, steps=STEPS, guidance=GUIDANCE
    )
    sample = dataclasses.replace(sample, guidance_low=LOW_GUIDANCE if boundary else 0.0)
    pictures = [picture(n, width) for n in range(images)]
    conditioning = None
    if pictures:
        given = dict(zip((0, FRAMES - 1), pictures, strict=False))
        conditioning = animate(generator, FRAMES, given).conditioning
    latents = sample_latents(
        generator,
        PROMPTS,
        sample,
        Noise(SEED),
        negative_prompt=NEGATIVE,
        conditioning=conditioning,
    )

    @jax.jit
    def decode(params, latents):
        model = bind(Autoencoder, autoencoder, params)
        return model.decode(model.from_latents(latents))

    ours = (np.clip(decode(generator.autoencoder_params, latents), -1, 1) + 1) / 2
    patch = settings.transformer.patch
    shape, grid = patchify(latents, patch).shape[1:], patch_grid(latent_shape(settings, sample), patch)
    keys = [jax.random.fold_in(jax.random.key(SEED), n) for n in range(len(PROMPTS))]
    noise = np.stack([jax.random.normal(key, shape) for key in keys])
    # From the folder that ours was written back to: weights and configs are diffusers' own to read.
    their_latents, theirs = their_videos(back, unpatchify(noise, grid, patch), width, pictures)
    print(f"latents differ by at most {np.abs(latents - their_latents).max():.1e}")
    np.testing.assert_allclose(latents, their_latents, atol=LATENT_LIMIT, rtol=0)
    print(f"frames differ by at most {np.abs(ours - theirs).max():.1e}, of a deviation of {theirs.std():.2f}")
    assert theirs.std() > 0.03
    np.testing.assert_allclose(ours, theirs, atol=FRAME_LIMIT, rtol=0)
