"""Our adapters, written for diffusers' load_lora_weights, make of its model what they make of ours."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install sora_jax[parity]")
pytest.importorskip("diffusers", reason="parity needs diffusers: pip install sora_jax[parity]")
pytest.importorskip("peft", reason="parity needs peft: pip install sora_jax[parity]")

import jax
from diffusers import UniPCMultistepScheduler, WanPipeline
from diffusers_wan import build_transformer, their_velocity, with_random_weights
from wan_cases import CASES, TEXT, TRANSFORMERS, our_velocity, transformer_params

from sora_jax.config.schema import LoraSettings, Settings, TrainSettings
from sora_jax.interop.adapters import adapter_tensors, add_adapter, low_rank_adapter, write_adapter
from sora_jax.models.video_model import init_trained

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("one_device")]
SETTINGS = Settings(
    transformer=TRANSFORMERS["t2v"],
    text=TEXT,
    autoencoder=CASES["wan21"],
    lora=LoraSettings(rank=3, alpha=6.0),
    train=TrainSettings(init_from="base"),
)


def test_diffusers_with_our_adapters_gives_our_velocity(tmp_path):
    adapters = init_trained(SETTINGS, jax.random.key(0))["transformer"]
    adapters = jax.tree.map(lambda x: 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), adapters)
    adapter = low_rank_adapter(adapters, SETTINGS, "run")
    ours = our_velocity("t2v", add_adapter(transformer_params("t2v"), SETTINGS.transformer, adapter))
    write_adapter(tmp_path / "lora.safetensors", adapter_tensors(adapters, SETTINGS))

    transformer = with_random_weights(build_transformer(TRANSFORMERS["t2v"]))
    without = their_velocity("t2v", transformer)
    pipeline = WanPipeline(None, None, None, UniPCMultistepScheduler(), transformer=transformer)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    theirs = their_velocity("t2v", transformer)
    print(f"velocities differ by at most {np.abs(ours - theirs).max():.1e}")
    assert np.abs(theirs - without).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
