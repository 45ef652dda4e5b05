"""From prompt to frames: our converted weights against diffusers' WanPipeline on the same folder, float32."""

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
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5EncoderModel
from wan_published import SHIFT, float32_generator, write_published

from sora_jax.cli import main
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.generate.pipeline import sample_latents
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.module import bind
from sora_jax.patches import patchify, unpatchify

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("one_device")]
PROMPTS, NEGATIVE = ["a rabbit", "a bird and a rabbit"], "two birds"
STEPS, GUIDANCE, LOW_GUIDANCE, SEED = 10, 5.0, 3.0, 3
FRAMES, HEIGHT, WIDTH = 9, 32, 48
LIMIT = 1e-4  # of frames in [0, 1]; ten guided steps multiply the rounding of each


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


def their_frames(folder, latents) -> np.ndarray:
    """[B, F, H, W, 3] in [0, 1]."""
    experts = {}
    if (folder / "transformer_2").exists():
        boundary = json.loads((folder / "model_index.json").read_text())["boundary_ratio"]
        experts = {"transformer_2": their_transformer(folder / "transformer_2"), "boundary_ratio": boundary}
    pipeline = WanPipeline(
        tokenizer=TheirTokenizer(folder / "tokenizer" / "spiece.model"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae"),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
        ),
        transformer=their_transformer(folder / "transformer"),
        **experts,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=PROMPTS,
        negative_prompt=[NEGATIVE] * len(PROMPTS),
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        guidance_scale_2=LOW_GUIDANCE if experts else None,
        latents=torch.from_numpy(np.moveaxis(latents, -1, 1).copy()),
        output_type="np",
        max_sequence_length=512,
    ).frames


@pytest.mark.parametrize("boundary", [0.0, 0.875], ids=["one", "experts"])
def test_frames_equal_diffusers_pipeline(tmp_path, boundary):
    published, workdir, back = tmp_path / "published", tmp_path / "workdir", tmp_path / "back"
    write_published(published, "float32", boundary=boundary)
    assert main(["convert", f"--from={published}", f"--to={workdir}"]) == 0
    assert main(["convert", f"--from={workdir}", f"--to={back}"]) == 0
    generator = float32_generator(workdir)
    settings, autoencoder = generator.settings, generator.autoencoder
    sample = dataclasses.replace(
        settings.sample, size=f"{WIDTH}x{HEIGHT}", frames=FRAMES, steps=STEPS, guidance=GUIDANCE
    )
    latents = sample_latents(
        generator, PROMPTS, sample, seed=SEED, negative_prompt=NEGATIVE, low_guidance=LOW_GUIDANCE
    )

    @jax.jit
    def decode(params, latents):
        model = bind(Autoencoder, autoencoder, params)
        return model.decode(model.from_latents(latents))

    ours = (np.clip(decode(generator.autoencoder_params, latents), -1, 1) + 1) / 2
    patch, grid = settings.transformer.patch, (3, 2, 3)
    shape = patchify(latents, patch).shape[1:]
    keys = [jax.random.fold_in(jax.random.key(SEED), n) for n in range(len(PROMPTS))]
    noise = np.stack([jax.random.normal(key, shape) for key in keys])
    # From the folder that ours was written back to: weights and configs are diffusers' own to read.
    theirs = their_frames(back, unpatchify(noise, grid, patch))
    print(f"frames differ by at most {np.abs(ours - theirs).max():.1e}, of a deviation of {theirs.std():.2f}")
    assert theirs.std() > 0.03
    np.testing.assert_allclose(ours, theirs, atol=LIMIT, rtol=0)
