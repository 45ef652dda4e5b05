"""CLIP's towers and VideoMAE's encoder against transformers, with the same random weights, float32."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install sora_jax[parity]")

import jax
import safetensors.torch
import tiny
import torch
import transformers

from sora_jax.data.conditioning_frames import CLIP_MEAN, CLIP_STD
from sora_jax.evaluate.suites.clip_score import read, see
from sora_jax.evaluate.suites.fvd import embed
from sora_jax.interop.metric_backbones import load_clip, load_video_encoder

pytestmark = pytest.mark.parity


def save(model, folder):
    """With weights large enough for every part to count."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_equals_transformers(tmp_path, activation):
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config=tower
        | {"vocab_size": 99, "max_position_embeddings": 16, "hidden_act": activation, "eos_token_id": 98},
        vision_config=tower
        | {"hidden_size": 48, "patch_size": 8, "image_size": 32, "num_hidden_layers": 2, "hidden_act": activation},
        projection_dim=24,
    )
    model = save(transformers.CLIPModel(config), tmp_path)
    draw = np.random.default_rng(0)
    images = draw.normal(size=(3, 32, 32, 3)).astype(np.float32)
    tokens = draw.integers(1, 97, (3, 16))
    ends = np.array([15, 4, 9])
    tokens[np.arange(3), ends] = 98
    with torch.no_grad():
        seen = model.vision_model(torch.from_numpy(images).permute(0, 3, 1, 2)).pooler_output
        seen = model.visual_projection(seen)
        said = model.text_projection(model.text_model(torch.from_numpy(tokens)).pooler_output)
        theirs = [torch.nn.functional.normalize(x, dim=-1).numpy() for x in (seen, said)]
    with jax.set_mesh(tiny.mesh_of()):
        settings, params = load_clip(str(tmp_path))
        ours = [np.asarray(x) for x in (see(settings, params, images), read(settings, params, tokens, ends))]
        # What comes after the end is seen by nobody.
        tokens[1, 5:] = 7
        again = np.asarray(read(settings, params, tokens, ends))
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(b[0] - b[1]).max() > 0.05
        np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_array_equal(again, ours[1])


def test_pictures_are_normalised_as_transformers_does():
    processor = transformers.CLIPImageProcessor
    assert list(CLIP_MEAN) == pytest.approx(processor().image_mean)
    assert list(CLIP_STD) == pytest.approx(processor().image_std)


@pytest.mark.parametrize("own", [False, True], ids=["transformers' names", "VideoMAE v2's names"])
def test_the_video_encoder_equals_transformers(tmp_path, own):
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        tubelet_size=2,
        hidden_size=384 if own else 36,
        num_attention_heads=6,
        num_hidden_layers=3,
        intermediate_size=40,
        use_mean_pooling=True,
        num_labels=5,
    )
    model = save(transformers.VideoMAEForVideoClassification(config), tmp_path)
    if own:
        as_its_authors_name_it(model, tmp_path)
    videos = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    with torch.no_grad():
        x = torch.from_numpy(videos).permute(0, 1, 4, 2, 3).float() / 255
        theirs = model.fc_norm(model.videomae(x).last_hidden_state.mean(1)).numpy()
    with jax.set_mesh(tiny.mesh_of()):
        settings, params = load_video_encoder(str(tmp_path))
        if own:  # a file without a config: what it does not tell is as in the published model
            assert (settings.heads, settings.frames, settings.size) == (6, 16, 224)
            import dataclasses

            settings = dataclasses.replace(settings, frames=4, size=32)
        ours = np.asarray(embed(settings, params, videos))
    assert np.abs(theirs[0] - theirs[1]).max() > 0.05
    np.testing.assert_allclose(ours, theirs, atol=5e-5)


def as_its_authors_name_it(model, folder):
    """The same weights as VideoMAE v2's own package names them, without a config."""
    named, layers = {}, "videomae.encoder.layer."
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if not name.startswith(layers):
            name = name.replace("videomae.embeddings.patch_embeddings.projection", "patch_embed.proj")
            named[name.replace("classifier.", "head.")] = tensor
            continue
        number, rest = name.removeprefix(layers).split(".", 1)
        for theirs, its in (
            ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("attention.output.dense", "attn.proj"),
            ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
        ):  # fmt: skip
            if rest.startswith(theirs):
                named[f"blocks.{number}.{rest.replace(theirs, its)}"] = tensor
                break
        own = f"{layers}{number}.attention.attention"
        if rest == "attention.attention.query.weight":
            parts = [tensors[f"{own}.{part}.weight"] for part in ("query", "key", "value")]
            named[f"blocks.{number}.attn.qkv.weight"] = torch.cat(parts)
        for part, its in (("query", "q_bias"), ("value", "v_bias")):
            for bias in (f"{own}.{part}.bias", f"{own}.{its}"):
                if bias in tensors:
                    named[f"blocks.{number}.attn.{its}"] = tensors[bias]
    for path in folder.iterdir():
        path.unlink()
    safetensors.torch.save_file(named, folder / "model.safetensors")


def test_frames_are_scaled_as_torch_does(one_device):
    """The measure's own resize: bilinear, without smoothing, to a square."""
    video = np.random.default_rng(0).integers(0, 256, (1, 2, 48, 80, 3), np.uint8)
    x = torch.from_numpy(video[0]).permute(0, 3, 1, 2).float() / 255
    theirs = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
    ours = jax.image.resize(video.astype(np.float32) / 255, (1, 2, 32, 32, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(np.asarray(ours)[0], theirs.permute(0, 2, 3, 1).numpy(), atol=1e-5)
