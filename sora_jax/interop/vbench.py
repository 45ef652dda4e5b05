"""Weights of VBench's networks, by their published names, from safetensors.

Each network has a folder. Pickles are never opened: docs/guide/vbench.md says how to turn one into safetensors.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from sora_jax.checkpoint.model_folder import named
from sora_jax.core.errors import InputError
from sora_jax.interop.metric_backbones import Rows
from sora_jax.interop.tables import Tensor, check_tensors, linear, load_foreign, norm
from sora_jax.interop.tensors import tensors_in
from sora_jax.models.layers.params import abstract_params
from sora_jax.models.vbench.amt import Amt, AmtSettings
from sora_jax.models.vbench.musiq import Musiq, MusiqSettings
from sora_jax.models.vbench.raft import Raft, RaftSettings
from sora_jax.models.vbench.vit import Dino, DinoSettings, TextTowerSettings, TowerSettings, Viclip, ViclipSettings

HEAD = 64  # elements of an attention head of all of these networks
CONV = "o i h w -> h w i o"
SUFFIXES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def load_raft(folder: str) -> tuple[RaftSettings, dict]:
    """(settings, parameters) of RAFT, float32 on the current mesh; as all loaders here.

    Raises: InputError if the folder is absent or holds another model; names the tensor.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors_in(folder).items()}
    renamed = (
        (r"mask\.1\.", "mask.2."),
        (r"flow_head\.0\.", "flow_head.conv1."),
        (r"flow_head\.1\.", "flow_head.conv2."),
    )
    # The norm of a shortcut has two names.
    unused = [name for name in tensors if name.endswith("num_batches_tracked") or ".0.norm3." in name]
    return _load_convs(tensors, Raft, RaftSettings(), renamed, folder, unused)


def load_amt(folder: str) -> tuple[AmtSettings, dict]:
    """(settings, parameters) of AMT-S."""
    renamed = ((r"(gru|feat_head|flow_head)\.1\.", r"\1.2."),)
    return _load_convs(tensors_in(folder), Amt, AmtSettings(), renamed, folder)


def _load_convs(tensors, module_class, settings, renamed, folder, unused=()):
    table = conv_table(module_class, settings, renamed)
    return settings, load_foreign(tensors, table, module_class, settings, where=str(folder), unused=unused)


def conv_table(module_class, settings, renamed=()) -> dict[str, Tensor]:
    """The table of a network whose attributes have the published names, but for the `renamed` parts."""
    table = {}
    for ours, leaf in named(abstract_params(module_class, settings)):
        layer, part = ours.rsplit(".", 1)
        theirs = f"{layer}."
        for pattern, replacement in renamed:
            theirs = re.sub(pattern, replacement, theirs)
        transposed = "i o h w -> h w i o" if layer.endswith("convblock.2") else CONV
        table[ours] = Tensor(theirs + SUFFIXES.get(part, part), transposed if leaf.ndim == 4 else "a -> a")
    return table


def load_musiq(folder: str) -> tuple[MusiqSettings, dict]:
    """(settings, parameters) of MUSIQ with one score, as pyiqa names them."""
    tensors = tensors_in(folder)
    width = _shape(tensors, "transformer_encoder.cls", folder)[-1]
    block = "transformer_encoder.transformer.encoderblock_"
    settings = MusiqSettings(
        width=width,
        heads=width // HEAD,
        mlp=_shape(tensors, f"{block}0.mlp.fc1.weight", folder)[0],
        layers=_count(tensors, rf"{block}(\d+)\."),
    )
    return settings, load_foreign(tensors, musiq_table(), Musiq, settings, where=str(folder))


def musiq_table() -> dict[str, Tensor]:
    block, encoder = "transformer_encoder.transformer.encoderblock_{}", "transformer_encoder"
    table = {"conv_root": Tensor("conv_root.weight", CONV)} | norm("gn_root", "gn_root", bias=True)
    for name in ("conv1", "conv2", "conv3", "conv_proj"):
        table[f"block1.{name}"] = Tensor(f"block1.{name}.weight", CONV)
    for name in ("gn1", "gn2", "gn3", "gn_proj"):
        table |= norm(f"block1.{name}", f"block1.{name}", bias=True)
    table |= linear("embedding", "embedding")
    table["positions"] = Tensor(f"{encoder}.posembed_input.position_emb", "1 i e -> i e")
    table["scales"] = Tensor(f"{encoder}.scaleembed_input.scale_emb", "i e -> i e")
    table["whole"] = Tensor(f"{encoder}.cls", "1 1 e -> e")
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
        table |= linear(f"blocks.{ours}", f"{block}.attention.{theirs}")
    table |= linear("blocks.mlp.up", f"{block}.mlp.fc1") | linear("blocks.mlp.down", f"{block}.mlp.fc2")
    table |= norm("blocks.attention_norm", f"{block}.norm1", bias=True)
    table |= norm("blocks.mlp_norm", f"{block}.norm2", bias=True)
    return table | norm("norm", f"{encoder}.encoder_norm", bias=True) | linear("head", "head")


def load_dino(folder: str) -> tuple[DinoSettings, dict]:
    """(settings, parameters) of a DINO encoder, by its authors' names or by those of transformers' ViTModel."""
    tensors = tensors_in(folder)
    if "embeddings.cls_token" in tensors:
        table, fused = dino_table(*_TRANSFORMERS_VIT), tensors
        patches, positions = "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings"
        first, blocks = "encoder.layer.0.intermediate.dense.weight", r"encoder\.layer\.(\d+)\."
    else:
        table, fused = dino_table(*_OWN_VIT), split_qkv(tensors, r"^(blocks\.\d+\.attn)\.qkv\.(weight|bias)$")
        patches, positions = "patch_embed.proj.weight", "pos_embed"
        first, blocks = "blocks.0.mlp.fc1.weight", r"blocks\.(\d+)\."
    width, _, side, _ = _shape(tensors, patches, folder)
    settings = DinoSettings(
        width=width,
        heads=width // HEAD,
        mlp=_shape(tensors, first, folder)[0],
        layers=_count(tensors, blocks),
        patch=side,
        grid=int((_shape(tensors, positions, folder)[1] - 1) ** 0.5),
    )
    table["patch_embedding.kernel"] = dataclasses.replace(
        table["patch_embedding.kernel"], sizes=(("h", side), ("w", side))
    )
    unused = [name for name in tensors if name.startswith(("pooler.", "head."))]
    return settings, load_foreign(fused, table, Dino, settings, where=str(folder), unused=unused)


# (embeddings' prefix, patches, positions, block, its layers, last norm) of the two names of a vision transformer.
_LAYERS = ("attention_norm", "q", "k", "v", "out", "mlp_norm", "mlp.up", "mlp.down")
_OWN_VIT = (
    "cls_token", "patch_embed.proj", "pos_embed", "blocks.{}.",
    ("norm1", "attn.q", "attn.k", "attn.v", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"), "norm",
)  # fmt: skip
_TRANSFORMERS_VIT = (
    "embeddings.cls_token", "embeddings.patch_embeddings.projection", "embeddings.position_embeddings",
    "encoder.layer.{}.",
    ("layernorm_before", "attention.attention.query", "attention.attention.key", "attention.attention.value",
     "attention.output.dense", "layernorm_after", "intermediate.dense", "output.dense"),
    "layernorm",
)  # fmt: skip


def dino_table(whole, patches, positions, block, layers, last) -> dict[str, Tensor]:
    table = {
        "patch_embedding.kernel": Tensor(f"{patches}.weight", "d c h w -> (h w c) d"),
        "patch_embedding.bias": Tensor(f"{patches}.bias"),
        "whole": Tensor(whole, "1 1 e -> e"),
        "positions": Tensor(positions, "1 i e -> i e"),
    }
    for ours, theirs in zip(_LAYERS, layers, strict=True):
        make = norm if "norm" in ours else linear
        table |= make(f"blocks.{ours}", block + theirs, bias=True)
    return table | norm("norm", last, bias=True)


def load_viclip(folder: str) -> tuple[ViclipSettings, dict]:
    """(settings, parameters) of a ViCLIP model."""
    tensors = tensors_in(folder)
    seen, read = "vision_encoder", "text_encoder"
    width, _, _, side, _ = _shape(tensors, f"{seen}.conv1.weight", folder)
    vocabulary, text_width = _shape(tensors, f"{read}.token_embedding.weight", folder)
    block = "transformer.resblocks.0.mlp.c_fc.weight"
    settings = ViclipSettings(
        video=TowerSettings(
            width,
            width // HEAD,
            _shape(tensors, f"{seen}.{block}", folder)[0],
            _count(tensors, rf"{seen}\.transformer\.resblocks\.(\d+)\."),
        ),
        text=TextTowerSettings(
            text_width,
            text_width // HEAD,
            _shape(tensors, f"{read}.{block}", folder)[0],
            _count(tensors, rf"{read}\.transformer\.resblocks\.(\d+)\."),
            vocabulary,
            _shape(tensors, f"{read}.positional_embedding", folder)[0],
            _shape(tensors, f"{read}.text_projection", folder)[1],
        ),
        frames=_shape(tensors, f"{seen}.temporal_positional_embedding", folder)[1],
        patch=side,
        size=side * int((_shape(tensors, f"{seen}.positional_embedding", folder)[0] - 1) ** 0.5),
    )
    table = viclip_table(settings)
    fused = split_qkv(tensors, r"^(.*\.attn)\.in_proj_(weight|bias)$")
    return settings, load_foreign(fused, table, Viclip, settings, where=str(folder), unused=["temp"])


def viclip_table(settings: ViclipSettings) -> dict[str, Tensor]:
    sizes = (("h", settings.patch), ("w", settings.patch))
    table = {
        "video.patch_embedding.kernel": Tensor("vision_encoder.conv1.weight", "d c 1 h w -> (h w c) d", sizes),
        "video.whole": Tensor("vision_encoder.class_embedding"),
        "video.positions": Tensor("vision_encoder.positional_embedding", "i e -> i e"),
        "video.times": Tensor("vision_encoder.temporal_positional_embedding", "1 f e -> f e"),
        **norm("video.first_norm", "vision_encoder.ln_pre", bias=True),
        **norm("video.norm", "vision_encoder.ln_post", bias=True),
        "video.out.kernel": Tensor("vision_encoder.proj", "i o -> i o"),
        "text.embedding": Tensor("text_encoder.token_embedding.weight", "i e -> i e"),
        "text.positions": Tensor("text_encoder.positional_embedding", "i e -> i e"),
        **norm("text.norm", "text_encoder.ln_final", bias=True),
        "text.out.kernel": Tensor("text_encoder.text_projection", "i o -> i o"),
    }
    layers = ("ln_1", "attn.q", "attn.k", "attn.v", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for tower, theirs in (("video", "vision_encoder"), ("text", "text_encoder")):
        for ours, layer in zip(_LAYERS, layers, strict=True):
            make = norm if "norm" in ours else linear
            table |= make(f"{tower}.blocks.{ours}", f"{theirs}.transformer.resblocks.{{}}.{layer}", bias=True)
    return table


def load_aesthetic_head(folder: str) -> dict:
    """The linear layer from CLIP's features of a picture to its score: {"kernel": [E, 1], "bias": [1]}."""
    tensors = tensors_in(folder)
    width = _shape(tensors, "weight", folder)[1]
    check_tensors(tensors, {"weight": (1, width), "bias": (1,)}, str(folder))
    return {"kernel": np.float32(tensors["weight"][...]).T, "bias": np.float32(tensors["bias"][...])}


def split_qkv(tensors: Mapping, pattern: str) -> dict:
    """The tensors with each matrix of queries, keys and values as three: NAME.q, NAME.k and NAME.v."""
    made = {}
    for name, tensor in tensors.items():
        found = re.match(pattern, name)
        if not found:
            made[name] = tensor
            continue
        rows = tensor.shape[0] // 3
        for number, part in enumerate("qkv"):
            made[f"{found[1]}.{part}.{found[2]}"] = Rows(tensor, number * rows, (number + 1) * rows)
    return made


def _shape(tensors: Mapping, name: str, folder) -> tuple[int, ...]:
    if name not in tensors:
        raise InputError(f"{folder}: tensor {name!r} is missing; is this another network?")
    return tuple(tensors[name].shape)


def _count(tensors: Mapping, pattern: str) -> int:
    """Number of blocks, by the numbers in their names."""
    return len({found[1] for found in (re.match(pattern, name) for name in tensors) if found})
