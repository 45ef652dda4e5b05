"""Adapters in every form that they are shared in: read, and added to the weights at the right strength."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny

from sora_jax.checkpoint.model_folder import named
from sora_jax.config.schema import TransformerSettings
from sora_jax.core.errors import InputError
from sora_jax.interop.adapters.files import few_step_settings, read_adapter
from sora_jax.interop.adapters.weights import add_adapter, brought_settings, parse_choice
from sora_jax.interop.tables import to_foreign
from sora_jax.interop.wan.tables import transformer_table
from sora_jax.models.dit import DiT

pytestmark = pytest.mark.usefixtures("one_device")
PLAIN = TransformerSettings(
    channels=4, text_width=8, width=12, heads=1, mlp=16, layers=2, frequencies=8, dtype="float32"
)
IMAGE = dataclasses.replace(PLAIN, condition_channels=8, image_width=12)
Q, UP, K_IMG = "blocks.1.attn1.to_q.weight", "blocks.0.ffn.net.0.proj.weight", "blocks.1.attn2.add_k_proj.weight"
RANK = 2


def pair(rank=RANK, d_in=12, d_out=12, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rank, d_in)).astype(np.float32), draw.normal(size=(d_out, rank)).astype(np.float32)


def vector(size=12):
    return np.random.default_rng(size).normal(size=size).astype(np.float32)


def file_of(folder, tensors, *, header=None, config=None, name="adapter_model.safetensors"):
    metadata = {"format": "pt"} | ({"lora_adapter_metadata": json.dumps(header)} if header else {})
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / name, metadata)
    if config:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / name


def named_pair(prefix, down="lora_A.weight", up="lora_B.weight", **more):
    a, b = pair()
    return {f"{prefix}.{down}": a, f"{prefix}.{up}": b, **{f"{prefix}.{k}": v for k, v in more.items()}}


DIFFUSERS, WAN = "transformer.blocks.1.attn1.to_q", "diffusion_model.blocks.1.self_attn.q"
KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight"}
ALPHA = np.float32(8)
# What is in the file, its header, the configuration beside it, alpha / rank.
FORMS = {
    "diffusers": (named_pair(DIFFUSERS), None, None, 1.0),
    "diffusers, alpha in the header": (
        named_pair(DIFFUSERS), {"transformer.r": 2, "transformer.lora_alpha": 16}, None, 8.0,
    ),
    "PEFT, alpha in adapter_config.json": (
        named_pair("base_model.model.blocks.1.attn1.to_q"), None, {"r": 2, "lora_alpha": 6}, 3.0,
    ),
    "PEFT, alpha and rank of one layer": (
        named_pair("base_model.model.blocks.1.attn1.to_q"), None,
        {"r": 4, "lora_alpha": 4, "rank_pattern": {"attn1.to_q": 2}, "alpha_pattern": {"attn1.to_q": 10}}, 5.0,
    ),
    "PEFT, rank-stabilised": (
        named_pair("base_model.model.blocks.1.attn1.to_q"), None,
        {"r": 2, "lora_alpha": 4, "use_rslora": True}, 4 / math.sqrt(2),
    ),
    "PEFT, with the adapter's name": (
        named_pair("base_model.model.blocks.1.attn1.to_q", "lora_A.default.weight", "lora_B.default.weight"),
        None, None, 1.0,
    ),
    "DiffSynth": (
        named_pair("blocks.1.self_attn.q", "lora_A.default.weight", "lora_B.default.weight"), None, None, 1.0,
    ),
    "AI-toolkit": (named_pair("diffusion_model.blocks.1.attn1.to_q"), None, None, 1.0),
    "ComfyUI, alpha of shape []": (named_pair(WAN, **KOHYA, alpha=ALPHA), None, None, 4.0),
    "ComfyUI, alpha of shape [1]": (named_pair(WAN, **KOHYA, alpha=ALPHA[None]), None, None, 4.0),
    "kohya and musubi": (
        named_pair("lora_unet_blocks_1_self_attn_q", **KOHYA, alpha=np.float32(1)), None, None, 0.5,
    ),
    "kohya, two underscores": (named_pair("lora_unet__blocks_1_self_attn_q", **KOHYA), None, None, 1.0),
}  # fmt: skip


def changes(settings, adapter, strength=1.0) -> dict[str, np.ndarray]:
    """What adding an adapter changes of each tensor, by diffusers' names."""
    before = jax.tree.map(lambda x: jax.device_put(x, jax.P()), tiny.random_params(DiT, settings))
    after = add_adapter(before, settings, adapter, strength)
    table = transformer_table(settings)
    theirs = [dict(to_foreign(table, dict(named(params)))) for params in (before, after)]
    found = {name: theirs[1][name] - x for name, x in theirs[0].items()}
    return {name: x for name, x in found.items() if np.abs(x).max() > 0}


@pytest.mark.parametrize("form", list(FORMS))
def test_an_adapter_counts_alpha_over_rank_in_every_form(tmp_path, form):
    tensors, header, config, scale = FORMS[form]
    adapter = read_adapter(file_of(tmp_path, tensors, header=header, config=config), PLAIN)
    a, b = pair()
    found = changes(PLAIN, adapter, strength=0.8)
    assert list(found) == [Q]
    np.testing.assert_allclose(found[Q], 0.8 * scale * b @ a, atol=1e-6 * max(1, scale * 10))


def test_differences_of_biases_norms_and_modulation_are_added(tmp_path):
    """As lightx2v and CausVid write them."""
    block = "diffusion_model.blocks.1"
    a, b = pair(3, 12, 16)
    tensors = {
        **named_pair(f"{block}.self_attn.q", **KOHYA),
        f"{block}.self_attn.q.diff_b": vector(),
        f"{block}.norm3.diff": vector(),
        f"{block}.norm3.diff_b": vector(),
        f"{block}.self_attn.norm_k.diff": vector(),
        f"{block}.diff_m": np.tile(vector(), (1, 6, 1)),
        "diffusion_model.blocks.0.ffn.0.lora_down.weight": a,
        "diffusion_model.blocks.0.ffn.0.lora_up.weight": b,
        "diffusion_model.head.head.diff_b": vector(16),
        "diffusion_model.patch_embedding.diff": np.ones((12, 4, 1, 2, 2), np.float32),
    }
    found = changes(PLAIN, read_adapter(file_of(tmp_path, tensors), PLAIN))
    wanted = {
        Q: pair()[1] @ pair()[0],
        "blocks.1.attn1.to_q.bias": vector(),
        "blocks.1.norm2.weight": vector(),
        "blocks.1.norm2.bias": vector(),
        "blocks.1.attn1.norm_k.weight": vector(),
        "blocks.1.scale_shift_table": np.tile(vector(), (1, 6, 1)),
        UP: b @ a,
        "proj_out.bias": vector(16),
        "patch_embedding.weight": np.ones((12, 4, 1, 2, 2), np.float32),
    }
    assert found.keys() == wanted.keys()
    for name, difference in wanted.items():
        np.testing.assert_allclose(found[name], difference, atol=5e-6, err_msg=name)


def test_an_image_branch_is_adapted_where_there_is_one_and_left_out_elsewhere(tmp_path):
    tensors = {
        **named_pair("diffusion_model.blocks.1.cross_attn.k_img", **KOHYA),
        **named_pair(WAN, **KOHYA),
        "text_encoder.layers.0.lora_A.weight": vector(),
        "lora_te_text_model_encoder.alpha": ALPHA,
    }
    file = file_of(tmp_path, tensors)
    assert changes(IMAGE, read_adapter(file, IMAGE)).keys() == {Q, K_IMG}
    adapter = read_adapter(file, PLAIN)
    assert changes(PLAIN, adapter).keys() == {Q}
    assert [note.split(": ")[1] for note in adapter.notes] == [
        "2 tensors of a text encoder are left out",
        "1 tensors of an image branch are left out, as the model has none",
    ]


@pytest.mark.parametrize(
    "tensor, words",
    [
        ("blocks.0.attn1.to_q.lokr_w1", "is of LoKr, which is not read"),
        ("lora_unet_blocks_0_self_attn_q.hada_w1_a", "is of LoHa, which is not read"),
        ("blocks.0.attn1.to_q.lora_magnitude_vector", "is of DoRA, which is not read"),
        ("blocks.0.self_attn.q.dora_scale", "is of DoRA, which is not read"),
        ("blocks.0.attn1.to_q.weight", "is no part of an adapter"),
        ("blocks.0.attn1.to_q.lora_A.weight", "has lora_A and no lora_B"),
        ("blocks.9.attn1.to_q.diff_b", "adapts a layer that this model has not"),
        ("blocks.0.attn1.to_q.diff_b", "has shape [7], the model's tensor [12]"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, tensor, words):
    value = vector(7) if tensor.endswith("diff_b") else np.ones((2, 12), np.float32)
    file = file_of(tmp_path, {**named_pair(DIFFUSERS), f"transformer.{tensor}": value})
    with pytest.raises(InputError) as error:
        read_adapter(file, PLAIN)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("a.safetensors", ("a.safetensors", 1.0, ("high", "low"))),
        ("a.safetensors:0.8", ("a.safetensors", 0.8, ("high", "low"))),
        ("low=a.safetensors:-1", ("a.safetensors", -1.0, ("low",))),
        ("high=runs/a", ("runs/a", 1.0, ("high",))),
        ("gs://bucket/a", ("gs://bucket/a", 1.0, ("high", "low"))),
    ],
)
def test_a_strength_and_an_expert_are_read(text, wanted):
    choice = parse_choice(text)
    assert (str(choice.path), choice.strength, choice.experts) == wanted


@pytest.mark.parametrize("text", ["", ":0.5", "a:nan", "low="])
def test_what_is_no_choice_is_told(text):
    with pytest.raises(InputError, match="is not PATH or PATH:STRENGTH"):
        parse_choice(text)


def test_an_adapter_for_few_steps_brings_its_settings(tmp_path):
    def settings_of(name, **header):
        path = tmp_path / name
        safetensors.numpy.save_file(named_pair(DIFFUSERS), path, header)
        return few_step_settings(path)

    fast = {"steps": 4, "guidance": 1.0, "shift": 5.0, "solver": "euler", "time_grid": "linear"}
    assert settings_of("Wan21_T2V_lightx2v_cfg_step_distill_rank32.safetensors") == fast
    assert settings_of("lightning_8steps.safetensors") == {**fast, "steps": 8}
    folder = tmp_path / "Wan2.2-T2V-A14B-4steps-lora-rank64"
    folder.mkdir()
    assert settings_of(f"{folder.name}/high_noise_model.safetensors") == fast
    assert settings_of(f"{folder.name}/style.safetensors") == {}
    assert settings_of("style.safetensors", sample='{"steps": 6, "guidance": 1.5}') == {
        "steps": 6,
        "guidance": 1.5,
    }
    for sample, words in (
        ('{"steps": "four"}', "the header's sample.steps: a value of type int, not 'four'"),
        ("4", "its header's sample is no JSON object"),
    ):
        with pytest.raises(InputError, match=words):
            settings_of("style.safetensors", sample=sample)
    assert settings_of("my_style_2000steps.safetensors") == settings_of("my_style_steps.safetensors") == {}
    brought, notes = brought_settings(
        [str(tmp_path / "lightning_8steps.safetensors:0.5"), f"{tmp_path}/my_style_steps.safetensors"]
    )
    assert brought["steps"] == 8 and len(notes) == 1 and "--steps=4 --guidance=1" in notes[0]
