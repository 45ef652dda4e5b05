"""Weights of the metric backbones, from the folders in which transformers and VideoMAE v2 keep them."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from sora_jax.config.schema import ImageSettings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, read_object
from sora_jax.interop.tables import Tensor, linear, load_foreign, norm
from sora_jax.interop.tensors import tensors_in
from sora_jax.interop.wan.tables import image_table
from sora_jax.models.metric_backbones import Clip, ClipSettings, VideoEncoder, VideoEncoderSettings

# Heads by the width of the published encoders S, B, L, H and g, whose files do not tell.
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
QUICK = "quick_gelu"


def load_clip(folder: str) -> tuple[ClipSettings, dict]:
    """(settings, parameters) of a CLIPModel in transformers' layout, float32 on the current mesh.

    Raises: InputError if the folder is absent or holds another model; names the tensor.
    """
    settings = clip_settings(read_object(as_path(folder) / "config.json"), folder)
    tensors = tensors_in(folder)
    unused = [n for n in tensors if n == "logit_scale" or n.endswith("position_ids")]
    return settings, load_foreign(tensors, clip_table(settings), Clip, settings, where=str(folder), unused=unused)


def clip_settings(config: Mapping, folder: str) -> ClipSettings:
    """From the contents of config.json; values that it leaves out are those of ViT-B/32."""
    if config.get("model_type", "clip") != "clip":
        raise InputError(f"{folder}: a {config['model_type']}, where CLIP is wanted")
    text, image = config.get("text_config") or {}, config.get("vision_config") or {}
    return ClipSettings(
        image=ImageSettings(
            width=image.get("hidden_size", 768),
            heads=image.get("num_attention_heads", 12),
            mlp=image.get("intermediate_size", 3072),
            layers=image.get("num_hidden_layers", 12),
            patch=image.get("patch_size", 32),
            size=image.get("image_size", 224),
            dtype="float32",
        ),
        width=text.get("hidden_size", 512),
        heads=text.get("num_attention_heads", 8),
        mlp=text.get("intermediate_size", 2048),
        layers=text.get("num_hidden_layers", 12),
        vocabulary=text.get("vocab_size", 49408),
        tokens=text.get("max_position_embeddings", 77),
        shared=config.get("projection_dim", 512),
        quick=image.get("hidden_act", QUICK) == QUICK,
    )


def clip_table(settings: ClipSettings) -> dict[str, Tensor]:
    seen = {
        f"image.{ours}": dataclasses.replace(tensor, name=f"vision_model.{tensor.name}")
        for ours, tensor in image_table(settings.image).items()
    }
    # The blocks of both towers have the same names.
    block = "encoder.layers."
    read = {
        f"text.{ours}": dataclasses.replace(tensor, name=f"text_model.{tensor.name}")
        for ours, tensor in image_table(settings.image).items()
        if tensor.name.startswith(block)
    }
    return {
        **seen,
        **norm("image_norm", "vision_model.post_layernorm", bias=True),
        **linear("image_out", "visual_projection", bias=False),
        "text.embedding": Tensor("text_model.embeddings.token_embedding.weight", "i e -> i e"),
        "text.positions": Tensor("text_model.embeddings.position_embedding.weight", "i e -> i e"),
        **read,
        **norm("text.norm", "text_model.final_layer_norm", bias=True),
        **linear("text.out", "text_projection", bias=False),
    }


def load_video_encoder(folder: str) -> tuple[VideoEncoderSettings, dict]:
    """(settings, parameters) of a VideoMAE encoder with its last norm, float32 on the current mesh.

    Args:
      folder: of a VideoMAEForVideoClassification of transformers, or of VideoMAE v2's own fine-tuned model,
        written as safetensors.
    Raises: InputError if the folder is absent or holds another model; names the tensor.
    """
    tensors, own = transformers_names(tensors_in(folder))
    try:
        settings = video_settings(tensors, own)
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder}: no fine-tuned VideoMAE encoder in it: {error}") from None
    config = as_path(folder) / "config.json"
    if config.is_file() and not own:
        found = read_object(config)
        settings = dataclasses.replace(
            settings,
            **{
                ours: found.get(theirs, getattr(settings, ours))
                for ours, theirs in (
                    ("heads", "num_attention_heads"),
                    ("frames", "num_frames"),
                    ("size", "image_size"),
                    ("epsilon", "layer_norm_eps"),
                )
            },
        )
    if not settings.heads:
        known = ", ".join(map(str, HEADS))
        raise InputError(
            f"{folder}: how many heads has an encoder {settings.width} wide? Known are those of {known}"
        )
    unused = [name for name in tensors if name.startswith("classifier.")]
    table = video_table(settings)
    return settings, load_foreign(tensors, table, VideoEncoder, settings, where=str(folder), unused=unused)


def video_settings(tensors: Mapping, own: bool) -> VideoEncoderSettings:
    """Sizes by the shapes of the tensors. Raises: KeyError or ValueError if they are not of such an encoder."""
    width, _, frames, side, _ = tensors["videomae.embeddings.patch_embeddings.projection.weight"].shape
    if "fc_norm.weight" not in tensors:
        raise ValueError("'fc_norm.weight' is missing")
    blocks = {int(m[1]) for m in (re.match(r"videomae\.encoder\.layer\.(\d+)\.", name) for name in tensors) if m}
    return VideoEncoderSettings(
        width=width,
        heads=HEADS.get(width, 0),
        mlp=tensors["videomae.encoder.layer.0.intermediate.dense.weight"].shape[0],
        layers=len(blocks),
        patch=(frames, side),
        # The epsilons of the two packages; transformers' last norm has torch's default.
        epsilon=1e-6 if own else 1e-12,
        last_epsilon=1e-6 if own else 1e-5,
    )


def video_table(settings: VideoEncoderSettings) -> dict[str, Tensor]:
    frames, side = settings.patch
    sizes = (("f", frames), ("h", side), ("w", side))
    block = "videomae.encoder.layer.{}"
    table = {
        "patch_embedding.kernel": Tensor(
            "videomae.embeddings.patch_embeddings.projection.weight", "d c f h w -> (f h w c) d", sizes
        ),
        "patch_embedding.bias": Tensor("videomae.embeddings.patch_embeddings.projection.bias"),
    }
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        table |= linear(f"blocks.{ours}", f"{block}.attention.attention.{theirs}")
    table |= linear("blocks.out", f"{block}.attention.output.dense")
    table |= linear("blocks.mlp.up", f"{block}.intermediate.dense")
    table |= linear("blocks.mlp.down", f"{block}.output.dense")
    table |= norm("blocks.attention_norm", f"{block}.layernorm_before", bias=True)
    table |= norm("blocks.mlp_norm", f"{block}.layernorm_after", bias=True)
    return table | norm("norm", "fc_norm", bias=True)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of a tensor, read when they are indexed."""

    tensor: object
    start: int
    stop: int

    @property
    def shape(self):
        return (self.stop - self.start, *self.tensor.shape[1:])

    def __getitem__(self, index):
        first, *rest = index if isinstance(index, tuple) else (index,)
        start, stop, _ = first.indices(self.stop - self.start)
        return self.tensor[(slice(self.start + start, self.start + stop), *rest)]


# VideoMAE v2's names -> transformers'.
_OWN = (
    (r"^patch_embed\.proj\.", "videomae.embeddings.patch_embeddings.projection."),
    (r"^blocks\.(\d+)\.norm1\.", r"videomae.encoder.layer.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"videomae.encoder.layer.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"videomae.encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.attn\.", r"videomae.encoder.layer.\1.attention.attention."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"videomae.encoder.layer.\1.intermediate.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"videomae.encoder.layer.\1.output.dense."),
    (r"^head\.", "classifier."),
)


def transformers_names(tensors: Mapping) -> tuple[dict, bool]:
    """The tensors by transformers' names, and whether they came by VideoMAE v2's own.

    VideoMAE v2 has one matrix for queries, keys and values, which is split, and no bias of the keys, which is 0.
    """
    own = any(name.startswith("patch_embed.") for name in tensors)
    named = {}
    for name, tensor in tensors.items():
        for pattern, theirs in _OWN if own else ():
            name = re.sub(pattern, theirs, name)
        # transformers 4 wrote the biases beside the layers.
        name = name.replace(".attention.q_bias", ".attention.query.bias")
        name = name.replace(".attention.v_bias", ".attention.value.bias")
        if name.endswith(".attention.qkv.weight"):
            width = tensor.shape[1]
            for part, layer in enumerate(("query", "key", "value")):
                rows = Rows(tensor, part * width, (part + 1) * width)
                named[name.replace("qkv", layer)] = rows
        else:
            named[name] = tensor
    for name in [n for n in named if n.endswith(".attention.key.weight")]:
        bias = name.replace("weight", "bias")
        named.setdefault(bias, np.zeros(named[name].shape[0], np.float32))
    return named, own
