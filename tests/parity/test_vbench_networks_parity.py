"""VBench's networks against their published code, with the same random weights, float32."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install sora_jax[parity]")

import dataclasses
import types

import jax
import safetensors.torch
import tiny
import torch
import transformers
import vbench_reference

from sora_jax.interop.vbench import load_amt, load_dino, load_musiq, load_raft, load_viclip
from sora_jax.models.layers.params import bind
from sora_jax.models.vbench.amt import Amt
from sora_jax.models.vbench.musiq import Musiq
from sora_jax.models.vbench.raft import Raft
from sora_jax.models.vbench.resize import resize
from sora_jax.models.vbench.vit import Dino, Viclip

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("optimized")]


def save(model, folder):
    """Weights random everywhere, norms' too, as a file."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.copy_(1 + torch.rand_like(tensor))
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor) * (tensor.ndim < 2))
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        tensors = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return model.eval()


class Arguments(types.SimpleNamespace):
    """What RAFT takes for its arguments."""

    def __contains__(self, name):
        return hasattr(self, name)


def channels_first(x):
    return torch.from_numpy(np.asarray(x)).permute(*range(x.ndim - 3), -1, -3, -2)


def check(name, ours, theirs, scale=1.0):
    ours = np.asarray(ours)
    print(f"{name}: differs by {np.abs(ours - theirs).max() / scale:.1e}")
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale)


def frames(count, height, width, seed=0):
    """Smooth moving pictures, [count, height, width, 3] float32 in [0, 255]."""
    draw = np.random.default_rng(seed)
    small = draw.uniform(0, 255, (1, height // 8 + 4, width // 8 + 4, 3)).astype(np.float32)
    large = np.asarray(resize(small, (height + 32, width + 32), "bicubic"))[0].clip(0, 255)
    return np.stack([large[2 * n : 2 * n + height, 3 * n : 3 * n + width] for n in range(count)])


def test_raft_equals_the_published_one(tmp_path):
    published = vbench_reference.vbench("third_party.RAFT.core.raft").RAFT
    model = save(published(Arguments(small=False, mixed_precision=False, alternate_corr=False)), tmp_path)
    pairs = frames(3, 136, 160)
    with torch.no_grad():
        images = channels_first(pairs[:2]), channels_first(pairs[1:])
        theirs = model(*images, iters=6, test_mode=True)[1].permute(0, 2, 3, 1).numpy()
    with jax.set_mesh(tiny.mesh_of()):
        settings, params = load_raft(str(tmp_path))
        settings = dataclasses.replace(settings, iterations=6)
        ours = np.asarray(jax.jit(lambda p, *x: bind(Raft, settings, p)(*x))(params, pairs[:2], pairs[1:]))
    assert theirs.std() > 0.05
    check("RAFT, of the longest vector", ours, theirs, np.abs(theirs).max())


def test_amt_equals_the_published_one(tmp_path):
    model = save(vbench_reference.vbench("third_party.amt.networks.AMT-S").Model(), tmp_path)
    pairs = frames(3, 144, 160) / 255
    with torch.no_grad():
        images = channels_first(pairs[:2]), channels_first(pairs[1:])
        theirs = model(*images, torch.full((2, 1, 1, 1), 0.5), eval=True)["imgt_pred"]
        theirs = theirs.permute(0, 2, 3, 1).numpy()
    with jax.set_mesh(tiny.mesh_of()):
        settings, params = load_amt(str(tmp_path))
        ours = np.asarray(jax.jit(lambda p, *x: bind(Amt, settings, p)(*x))(params, pairs[:2], pairs[1:]))
    assert theirs.std() > 0.05 and (theirs > 0).mean() > 0.3
    check("AMT-S", ours, theirs)


@pytest.mark.parametrize("size", [(135, 188), (512, 300)])
def test_musiq_equals_pyiqas(tmp_path, size):
    options = {"hidden_size": 128, "mlp_dim": 160, "num_heads": 2, "num_layers": 3}
    model = save(vbench_reference.musiq()(pretrained=False, **options), tmp_path)
    pictures = frames(2, *size) / 255
    with torch.no_grad():
        theirs = np.concatenate([model(channels_first(picture[None])).numpy()[0] for picture in pictures])
    with jax.set_mesh(tiny.mesh_of()):
        settings, params = load_musiq(str(tmp_path))
        ours = np.asarray(jax.jit(lambda p, x: bind(Musiq, settings, p)(x))(params, pictures))
    assert np.abs(theirs[0] - theirs[1]) > 1e-3
    check("MUSIQ", ours, theirs)


@pytest.mark.parametrize("size", [(224, 224), (224, 400)])
@pytest.mark.parametrize("own", [False, True], ids=["transformers' names", "DINO's names"])
def test_dino_equals_transformers(tmp_path, monkeypatch, size, own):
    config = transformers.ViTConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96, layer_norm_eps=1e-6
    )
    model = save(transformers.ViTModel(config, add_pooling_layer=False), tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    vit = transformers.models.vit.modeling_vit.ViTEmbeddings
    monkeypatch.setattr(vit, "interpolate_pos_encoding", dinos_positions)
    if own:
        safetensors.torch.save_file(dinos_names(tensors), tmp_path / "model.safetensors")
    pictures = frames(2, *size) / 100 - 1
    with torch.no_grad():
        theirs = model(channels_first(pictures), interpolate_pos_encoding=True).last_hidden_state[:, 0].numpy()
    with jax.set_mesh(tiny.mesh_of()):
        settings, params = load_dino(str(tmp_path))
        ours = np.asarray(jax.jit(lambda p, x: bind(Dino, settings, p)(x))(params, pictures))
    assert np.abs(theirs[0] - theirs[1]).max() > 0.01
    check("DINO", ours, theirs)


def dinos_positions(self, embeddings, height, width):
    """Positions as the DINO repository describes its interpolation; transformers' leaves out the 0.1."""
    side = self.patch_size if isinstance(self.patch_size, int) else self.patch_size[0]
    rows, columns = height // side, width // side
    positions = self.position_embeddings
    if height == width and rows * columns == positions.shape[1] - 1:
        return positions
    grid = int((positions.shape[1] - 1) ** 0.5)
    square = positions[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    scales = ((rows + 0.1) / grid, (columns + 0.1) / grid)
    made = torch.nn.functional.interpolate(square, scale_factor=scales, mode="bicubic")
    assert made.shape[2:] == (rows, columns)
    return torch.cat([positions[:, :1], made.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def dinos_names(tensors):
    """The tensors of a ViTModel by the names of DINO's own file, with fused queries, keys and values."""
    named = {
        "cls_token": tensors["embeddings.cls_token"],
        "pos_embed": tensors["embeddings.position_embeddings"],
    }
    for part in ("weight", "bias"):
        named[f"patch_embed.proj.{part}"] = tensors[f"embeddings.patch_embeddings.projection.{part}"]
        named[f"norm.{part}"] = tensors[f"layernorm.{part}"]
        for n in range(3):
            layer, block = f"encoder.layer.{n}", f"blocks.{n}"
            qkv = [tensors[f"{layer}.attention.attention.{name}.{part}"] for name in ("query", "key", "value")]
            named[f"{block}.attn.qkv.{part}"] = torch.cat(qkv)
            for own, theirs in {
                "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
                "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
            }.items():  # fmt: skip
                named[f"{block}.{own}.{part}"] = tensors[f"{layer}.{theirs}.{part}"]
    return named


def test_viclip_equals_the_published_one(tmp_path):
    video = vbench_reference.vbench("third_party.ViCLIP.viclip_vision").VisionTransformer
    text = tiny_text_tower()
    model = torch.nn.ModuleDict(
        {"vision_encoder": video(28, 14, 128, 3, 2, output_dim=24, num_frames=8), "text_encoder": text}
    )
    torch.nn.init.normal_(model["vision_encoder"].proj)
    torch.nn.init.normal_(model["vision_encoder"].temporal_positional_embedding)
    model = save(model, tmp_path)
    videos = np.stack([frames(8, 28, 28, seed) / 100 - 1 for seed in range(2)])
    tokens = np.random.default_rng(0).integers(1, 97, (2, 12)).astype(np.int32)
    ends = np.array([11, 6], np.int32)
    tokens[np.arange(2), ends] = 98
    with torch.no_grad():
        seen = model["vision_encoder"](channels_first(videos).transpose(1, 2))
        read = text(torch.from_numpy(tokens))
        theirs = [torch.nn.functional.normalize(x, dim=-1).numpy() for x in (seen, read)]
    with jax.set_mesh(tiny.mesh_of()):
        settings, params = load_viclip(str(tmp_path))
        seen = jax.jit(lambda p, x: bind(Viclip, settings, p).encode_videos(x))(params, videos)
        read = jax.jit(lambda p, x: bind(Viclip, settings, p).encode_texts(x, ends))(params, tokens)
    for a, b in zip((seen, read), theirs, strict=True):
        assert np.abs(b[0] - b[1]).max() > 0.01
        check("ViCLIP", a, b)


def tiny_text_tower():
    """ViCLIP's text tower, without the vocabulary that its constructor downloads."""
    module = vbench_reference.vbench("third_party.ViCLIP.viclip_text")
    model = module.CLIP_TEXT(24, 12, 99, 128, 2, 2, 0)
    torch.nn.init.normal_(model.positional_embedding, std=0.1)
    torch.nn.init.normal_(model.text_projection)
    return model


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(31, 57), (40, 90), (13, 20)])
def test_pictures_are_resized_as_by_torch(method, size):
    picture = np.random.default_rng(0).uniform(0, 255, (1, 40, 60, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(channels_first(picture), size, mode=method, align_corners=False)
    ours = np.asarray(resize(picture, size, method))
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=2e-3)
