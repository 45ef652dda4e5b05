"""Our adapters, written for diffusers' load_lora_weights, make of its model what they make of ours."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install sora_jax[parity]")
pytest.importorskip("diffusers", reason="parity needs diffusers: pip install sora_jax[parity]")
pytest.importorskip("peft", reason="parity needs peft: pip install sora_jax[parity]")

import json

import jax
import peft
import safetensors
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from diffusers_wan import build_transformer, their_velocity, with_random_weights
from wan_cases import CASES, TEXT, TRANSFORMERS, our_velocity, transformer_params

from sora_jax.config.schema import LoraSettings, MeshSettings, Settings, TrainSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.interop.adapters.files import read_adapter
from sora_jax.interop.adapters.weights import adapter_tensors, add_adapter, low_rank_adapter, write_adapter
from sora_jax.models.video_model import init_trained

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("one_device")]
SETTINGS = Settings(
    transformer=TRANSFORMERS["t2v"],
    text=TEXT,
    autoencoder=CASES["wan21"],
    lora=LoraSettings(rank=3, alpha=6.0),
    train=TrainSettings(init_from="base"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of our adapters, and our velocity with them."""
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        adapters = init_trained(SETTINGS, jax.random.key(0))["transformer"]
        adapters = jax.tree.map(lambda x: 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), adapters)
        adapter = low_rank_adapter(adapters, SETTINGS, "run")
        ours = our_velocity("t2v", add_adapter(transformer_params("t2v"), SETTINGS.transformer, adapter))
        path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
        write_adapter(path, adapter_tensors(adapters, SETTINGS))
    return path, ours


def assert_adapted(ours, transformer):
    theirs = their_velocity("t2v", transformer)
    print(f"velocities differ by at most {np.abs(ours - theirs).max():.1e}")
    without = their_velocity("t2v", with_random_weights(build_transformer(TRANSFORMERS["t2v"])))
    assert np.abs(theirs - without).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_diffusers_with_our_adapters_gives_our_velocity(written):
    path, ours = written
    transformer = with_random_weights(build_transformer(TRANSFORMERS["t2v"]))
    pipeline = WanPipeline(None, None, None, UniPCMultistepScheduler(), transformer=transformer)
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    assert_adapted(ours, transformer)


def test_peft_with_our_adapters_gives_our_velocity(written):
    path, ours = written
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors = {name.removeprefix("transformer."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = {key.removeprefix("transformer."): value for key, value in header.items()}
    config.pop("peft_type")
    transformer = with_random_weights(build_transformer(TRANSFORMERS["t2v"]))
    peft.inject_adapter_in_model(peft.LoraConfig(**config), transformer)
    left = peft.set_peft_model_state_dict(transformer, tensors)
    assert not left.unexpected_keys
    assert_adapted(ours, transformer)


def test_our_model_with_diffusers_adapters_gives_their_velocity(tmp_path):
    """Ranks and alphas that differ between layers, as diffusers writes them into the file's header."""
    transformer = with_random_weights(build_transformer(TRANSFORMERS["t2v"]))
    config = peft.LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=["to_q", "to_out.0", "ffn.net.2"],
        rank_pattern={"to_out.0": 2},
        alpha_pattern={"to_out.0": 5},
    )
    transformer.add_adapter(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    transformer.save_lora_adapter(tmp_path)
    adapter = read_adapter(tmp_path, SETTINGS.transformer)
    assert {x.rank for x in adapter.low_rank.values()} == {2, 4}
    ours = our_velocity("t2v", add_adapter(transformer_params("t2v"), SETTINGS.transformer, adapter))
    assert_adapted(ours, transformer)
