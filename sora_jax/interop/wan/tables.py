"""Wan's models: their published sizes, and the names of our tensors in diffusers and transformers."""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from sora_jax.config.schema import AutoencoderSettings, ImageSettings, TextSettings, TransformerSettings
from sora_jax.interop.tables import Tensor, linear, norm

# Latent statistics of the published autoencoders, per channel (their pipelines' configuration).
WAN21_LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN21_LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
WAN22_LATENT_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
WAN22_LATENT_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip

WAN21_AUTOENCODER = AutoencoderSettings(latent_mean=WAN21_LATENT_MEAN, latent_std=WAN21_LATENT_STD)
WAN22_AUTOENCODER = AutoencoderSettings(
    width=160,
    decoder_width=256,
    latent_channels=48,
    patch=2,
    shortcuts=True,
    latent_mean=WAN22_LATENT_MEAN,
    latent_std=WAN22_LATENT_STD,
)

_14B: dict[str, Any] = {"width": 5120, "heads": 40, "mlp": 13824, "layers": 40}
_IMAGE: dict[str, Any] = {"condition_channels": 20, "image_width": 1280}
TRANSFORMERS = {
    "wan2.1-t2v-1.3b": TransformerSettings(),
    "wan2.1-t2v-14b": TransformerSettings(**_14B),
    "wan2.1-i2v-14b": TransformerSettings(**_14B, **_IMAGE),
    "wan2.1-flf2v-14b": TransformerSettings(**_14B, **_IMAGE, image_positions=514),
    "wan2.2-t2v-a14b": TransformerSettings(**_14B),
    "wan2.2-i2v-a14b": TransformerSettings(**_14B, condition_channels=20),
    "wan2.2-ti2v-5b": TransformerSettings(width=3072, heads=24, mlp=14336, layers=30, channels=48),
}
UMT5_XXL = TextSettings(padded=True)
# Tensors of a whole UMT5 that its encoder does without; some files hold the embedding twice.
TEXT_UNUSED = ("encoder.embed_tokens.", "decoder.", "lm_head.")
# Tensors of a whole CLIP that its image tower does without.
IMAGE_UNUSED = ("post_layernorm.", "embeddings.position_ids", "visual_projection.", "logit_scale", "logit_bias")
IMAGE_UNUSED += ("text_model.", "text_projection.")

AUTOENCODER_KERNELS = {
    "shortcut": "o i 1 1 1 -> i o",
    "quant_conv": "o i 1 1 1 -> i o",
    "post_quant_conv": "o i 1 1 1 -> i o",
    "qkv": "o i 1 1 -> i o",
    "out": "o i 1 1 -> i o",
    "space": "o i h w -> 1 h w i o",
}


def autoencoder_table(settings: AutoencoderSettings) -> dict[str, Tensor]:
    """diffusers' AutoencoderKLWan."""
    table = {}
    for ours, theirs in _autoencoder_modules(settings).items():
        kind = ours.rsplit(".", 1)[-1]
        kernel = AUTOENCODER_KERNELS.get(kind, "o i t h w -> t h w i o")
        table[f"{ours}.kernel"] = Tensor(f"{theirs}.weight", kernel)
        table[f"{ours}.bias"] = Tensor(f"{theirs}.bias")
        ones = "1 1" if kind == "norm" else "1 1 1"
        table[f"{ours}.scale"] = Tensor(f"{theirs}.gamma", f"c {ones} -> c")
    return table


def _autoencoder_modules(settings: AutoencoderSettings) -> dict[str, str]:
    """Our name of each module of the autoencoder that holds weights -> diffusers' name."""
    names = {name: name for name in ("quant_conv", "post_quant_conv")}
    for half in ("encoder", "decoder"):
        for ours in ("conv_in", "conv_out", "norm_out"):
            names[f"{half}.{ours}"] = f"{half}.{ours}"
        for i in (0, 1):
            names |= _block(f"{half}.mid_block.block{i + 1}", f"{half}.mid_block.resnets.{i}")
        attention = f"{half}.mid_block.attentions.0"
        for ours, theirs in (("norm", "norm"), ("qkv", "to_qkv"), ("out", "proj")):
            names[f"{half}.mid_block.attention.{ours}"] = f"{attention}.{theirs}"
    flat = 0  # Wan 2.1's encoder is one list of blocks and downsamplings
    for i in range(len(settings.multipliers)):
        level, down, up = f"encoder.down_blocks.{i}", f"encoder.down_blocks.{i}", f"decoder.up_blocks.{i}"
        for j in range(settings.blocks):
            theirs = f"{down}.resnets.{j}" if settings.shortcuts else f"encoder.down_blocks.{flat + j}"
            names |= _block(f"{level}.blocks.{j}", theirs)
        flat += settings.blocks
        for j in range(settings.blocks + 1):
            names |= _block(f"decoder.up_blocks.{i}.blocks.{j}", f"{up}.resnets.{j}")
        if i < len(settings.temporal):
            down = f"{down}.downsampler" if settings.shortcuts else f"encoder.down_blocks.{flat}"
            names |= _resample(f"{level}.resample", down)
            up = f"{up}.upsampler" if settings.shortcuts else f"{up}.upsamplers.0"
            names |= _resample(f"decoder.up_blocks.{i}.resample", up)
            flat += 1
    return names


def _block(ours: str, theirs: str) -> dict[str, str]:
    parts = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"shortcut": "conv_shortcut"}
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()}


def _resample(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.space": f"{theirs}.resample.1", f"{ours}.time": f"{theirs}.time_conv"}


def transformer_table(settings: TransformerSettings) -> dict[str, Tensor]:
    """diffusers' WanTransformer3DModel."""
    C, sizes = settings.channels, tuple(zip("fhw", settings.patch, strict=True))
    text, time, image = (f"condition_embedder.{name}_embedder" for name in ("text", "time", "image"))
    patches = "d c f h w -> (f h w c) d"
    channels = C + settings.condition_channels
    table = {
        "patch_embedding.kernel": Tensor("patch_embedding.weight", patches, sizes, (0, C)),
        "condition_embedding.kernel": Tensor("patch_embedding.weight", patches, sizes, (C, channels)),
        "patch_embedding.bias": Tensor("patch_embedding.bias"),
        "head_modulation": Tensor("scale_shift_table", "1 n d -> n d"),
        "blocks.modulation": Tensor("blocks.{}.scale_shift_table", "1 n d -> n d"),
        "image_in.positions": Tensor(f"{image}.pos_embed", "1 i e -> i e"),
    }
    for ours, theirs in (
        ("text_in", f"{text}.linear_1"),
        ("text_out", f"{text}.linear_2"),
        ("time_in", f"{time}.linear_1"),
        ("time_out", f"{time}.linear_2"),
        ("time_modulation", "condition_embedder.time_proj"),
        ("head", "proj_out"),
        ("image_in.up", f"{image}.ff.net.0.proj"),
        ("image_in.down", f"{image}.ff.net.2"),
        ("blocks.mlp.up", "blocks.{}.ffn.net.0.proj"),
        ("blocks.mlp.down", "blocks.{}.ffn.net.2"),
    ):
        table |= linear(ours, theirs)
    for ours, theirs in (
        ("image_in.norm_in", f"{image}.norm1"),
        ("image_in.norm_out", f"{image}.norm2"),
        ("blocks.cross_attention_norm", "blocks.{}.norm2"),
    ):
        table |= norm(ours, theirs, bias=True)
    for ours, theirs in (("self_attention", "attn1"), ("cross_attention", "attn2")):
        ours, theirs = f"blocks.{ours}", f"blocks.{{}}.{theirs}"
        for a, b in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
            table |= linear(f"{ours}.{a}", f"{theirs}.{b}")
        for a, b in (("image_k", "add_k_proj"), ("image_v", "add_v_proj")):
            table |= linear(f"{ours}.{a}", f"{theirs}.{b}")
        for a, b in (("q_norm", "norm_q"), ("k_norm", "norm_k"), ("image_k_norm", "norm_added_k")):
            table |= norm(f"{ours}.{a}", f"{theirs}.{b}")
    # Rotary pairs: theirs lie side by side, ours half a head apart.
    heads = (("a", settings.heads), ("two", 2))
    for name in ("q", "k"):
        ours = f"blocks.self_attention.{name}"
        for part, pattern in (
            (f"{ours}.kernel", "(a k two) i -> i (a two k)"),
            (f"{ours}.bias", "(a k two) -> (a two k)"),
            (f"{ours}_norm.scale", "(a k two) -> (a two k)"),
        ):
            table[part] = Tensor(table[part].name, pattern, heads)
    return table


def text_table(settings: TextSettings) -> dict[str, Tensor]:
    """transformers' UMT5EncoderModel, whose logits are not divided by sqrt(head_dim) as ours are."""
    attention, mlp = "encoder.block.{}.layer.0", "encoder.block.{}.layer.1"
    table = {
        "embedding": Tensor("shared.weight", "v e -> v e"),
        "blocks.attention.relative_bias": Tensor(
            f"{attention}.SelfAttention.relative_attention_bias.weight", "b a -> b a"
        ),
    }
    for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o")):
        table |= linear(f"blocks.attention.{ours}", f"{attention}.SelfAttention.{theirs}", bias=False)
    q = "blocks.attention.q.kernel"
    table[q] = dataclasses.replace(table[q], factor=math.sqrt(settings.head_dim))
    for ours, theirs in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo")):
        table |= linear(f"blocks.mlp.{ours}", f"{mlp}.DenseReluDense.{theirs}", bias=False)
    table |= norm("blocks.attention_norm", f"{attention}.layer_norm")
    table |= norm("blocks.mlp_norm", f"{mlp}.layer_norm")
    return table | norm("norm", "encoder.final_layer_norm")


def image_table(settings: ImageSettings) -> dict[str, Tensor]:
    """transformers' CLIPVisionModel, but for its last layer and norm, which Wan does without."""
    block = "encoder.layers.{}"
    sizes = (("h", settings.patch), ("w", settings.patch))
    table = {
        "patch_embedding.kernel": Tensor("embeddings.patch_embedding.weight", "d c h w -> (h w c) d", sizes),
        "whole": Tensor("embeddings.class_embedding"),
        "positions": Tensor("embeddings.position_embedding.weight", "i e -> i e"),
    }
    for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")):
        table |= linear(f"blocks.{ours}", f"{block}.self_attn.{theirs}")
    for ours, theirs in (("up", "fc1"), ("down", "fc2")):
        table |= linear(f"blocks.mlp.{ours}", f"{block}.mlp.{theirs}")
    table |= norm("blocks.attention_norm", f"{block}.layer_norm1", bias=True)
    table |= norm("blocks.mlp_norm", f"{block}.layer_norm2", bias=True)
    return table | norm("norm", "pre_layrnorm", bias=True)


def text_unused(names: Iterable[str]) -> set[str]:
    """The tensors of a UMT5 that its encoder does without."""
    return {name for name in names if name.startswith(TEXT_UNUSED)}


def image_unused(names: Iterable[str], settings: ImageSettings) -> set[str]:
    """The tensors of a CLIP that Wan does without: its text tower, projections, last layer and last norm."""
    last = f"encoder.layers.{settings.layers}."
    return {name for name in names if name.startswith((last, *IMAGE_UNUSED))}


# A transformer's original names -> diffusers' names; the rules are applied once each, in this order.
_ORIGINAL = (
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^img_emb\.proj\.0\.", "condition_embedder.image_embedder.norm1."),
    (r"^img_emb\.proj\.1\.", "condition_embedder.image_embedder.ff.net.0.proj."),
    (r"^img_emb\.proj\.3\.", "condition_embedder.image_embedder.ff.net.2."),
    (r"^img_emb\.proj\.4\.", "condition_embedder.image_embedder.norm2."),
    (r"^img_emb\.emb_pos$", "condition_embedder.image_embedder.pos_embed"),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.ffn\.0\.", r"\1.ffn.net.0.proj."),
    (r"^(blocks\.\d+)\.ffn\.2\.", r"\1.ffn.net.2."),
    (r"^(blocks\.\d+)\.self_attn\.", r"\1.attn1."),
    (r"^(blocks\.\d+)\.cross_attn\.", r"\1.attn2."),
    (r"(\.attn[12])\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attn[12])\.o\.", r"\1.to_out.0."),
    (r"(\.attn2)\.([kv])_img\.", r"\1.add_\2_proj."),
    (r"(\.attn2)\.norm_k_img\.", r"\1.norm_added_k."),
)


def from_original(name: str) -> str:
    """diffusers' name of a transformer's tensor, from its name in Wan's own files; any other name as it is."""
    for pattern, name_there in _ORIGINAL:
        name = re.sub(pattern, name_there, name)
    return name
