"""The configuration files beside published Wan weights, diffusers' or the original, into our settings and back."""

import math
import pathlib
from collections.abc import Mapping

from sora_jax.config.schema import AutoencoderSettings, ImageSettings, TextSettings, TransformerSettings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import read_object

# Values that every published Wan has and the model relies on.
_FIXED = {
    "patch_size": [1, 2, 2],
    "cross_attn_norm": True,
    "eps": 1e-6,
    "qk_norm": "rms_norm_across_heads",
}
HEAD_DIM = 128  # of every published transformer; its tensors do not tell


def transformer_settings(path: pathlib.Path, tensors: Mapping) -> TransformerSettings:
    """From diffusers' transformer/config.json, or the original config.json, or, without a file, from the tensors.

    Args:
      tensors: by diffusers' names.
    """
    config = read_object(path) if path.is_file() else {}
    if "dim" in config:  # the original, which says nothing of an image branch
        config = _from_original(config) | _image_of(tensors)
    elif "num_attention_heads" not in config:
        config = _from_tensors(tensors, path.parent)
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise InputError(f"{path}: {key} is {config[key]}, only {value} is built")
    heads = _take(config, "num_attention_heads", path)
    channels = _take(config, "out_channels", path)
    return TransformerSettings(
        patch=tuple(config.get("patch_size", (1, 2, 2))),
        channels=channels,
        condition_channels=_take(config, "in_channels", path) - channels,
        image_width=config.get("image_dim") or 0,
        image_positions=config.get("pos_embed_seq_len") or 0,
        text_width=_take(config, "text_dim", path),
        width=heads * _take(config, "attention_head_dim", path),
        heads=heads,
        mlp=_take(config, "ffn_dim", path),
        layers=_take(config, "num_layers", path),
        frequencies=_take(config, "freq_dim", path),
    )


def _from_original(config: dict) -> dict:
    names = {
        "num_heads": "num_attention_heads",
        "in_dim": "in_channels",
        "out_dim": "out_channels",
        "ffn_dim": "ffn_dim",
        "freq_dim": "freq_dim",
        "num_layers": "num_layers",
        "eps": "eps",
    }
    made = {theirs: config[ours] for ours, theirs in names.items() if ours in config}
    return made | {
        "text_dim": config.get("text_dim", 4096),
        "attention_head_dim": config.get("dim", 0) // max(config.get("num_heads", 1), 1),
    }


def _from_tensors(tensors: Mapping, where: pathlib.Path) -> dict:
    """A transformer's configuration by the shapes of its tensors."""
    names = {
        "patch": "patch_embedding.weight",
        "text": "condition_embedder.text_embedder.linear_1.weight",
        "time": "condition_embedder.time_embedder.linear_1.weight",
        "mlp": "blocks.0.ffn.net.0.proj.weight",
        "head": "proj_out.bias",
    }
    for name in names.values():
        if name not in tensors:
            raise InputError(f"{where}: tensor {name!r} is missing; is it a transformer of Wan?")
    shapes = {key: tensors[name].shape for key, name in names.items()}
    width, channels, *patch = shapes["patch"]
    if width % HEAD_DIM:
        raise InputError(
            f"{where}: a transformer of width {width}; put the config.json that tells its heads beside it"
        )
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    return {
        "patch_size": list(patch),
        "num_attention_heads": width // HEAD_DIM,
        "attention_head_dim": HEAD_DIM,
        "in_channels": channels,
        "out_channels": shapes["head"][0] // math.prod(patch),
        "text_dim": shapes["text"][1],
        "freq_dim": shapes["time"][1],
        "ffn_dim": shapes["mlp"][0],
        "num_layers": len(blocks),
    } | _image_of(tensors)


def _image_of(tensors: Mapping) -> dict:
    """The sizes of an image branch, by its tensors; empty if there is none."""
    branch, found = "condition_embedder.image_embedder", {}
    for name, key, axis in (("norm1.weight", "image_dim", 0), ("pos_embed", "pos_embed_seq_len", 1)):
        if (tensor := tensors.get(f"{branch}.{name}")) is not None:
            found[key] = tensor.shape[axis]
    return found


def transformer_config(settings: TransformerSettings) -> dict:
    """diffusers' transformer/config.json."""
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(settings.patch),
        "num_attention_heads": settings.heads,
        "attention_head_dim": settings.width // settings.heads,
        "in_channels": settings.channels + settings.condition_channels,
        "out_channels": settings.channels,
        "text_dim": settings.text_width,
        "freq_dim": settings.frequencies,
        "ffn_dim": settings.mlp,
        "num_layers": settings.layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": settings.image_width or None,
        "added_kv_proj_dim": settings.width if settings.image_width else None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": settings.image_positions or None,
    }


def autoencoder_settings(path: pathlib.Path) -> AutoencoderSettings:
    """From diffusers' vae/config.json."""
    config = read_object(path)
    width = _take(config, "base_dim", path)
    return AutoencoderSettings(
        width=width,
        decoder_width=config.get("decoder_base_dim") or width,
        multipliers=tuple(_take(config, "dim_mult", path)),
        blocks=_take(config, "num_res_blocks", path),
        temporal=tuple(_take(config, "temperal_downsample", path)),
        latent_channels=_take(config, "z_dim", path),
        patch=config.get("patch_size") or 1,
        shortcuts=config.get("is_residual", False),
        latent_mean=tuple(map(float, _take(config, "latents_mean", path))),
        latent_std=tuple(map(float, _take(config, "latents_std", path))),
    )


def autoencoder_config(settings: AutoencoderSettings) -> dict:
    """diffusers' vae/config.json."""
    zeros, ones = [0.0] * settings.latent_channels, [1.0] * settings.latent_channels
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": settings.width,
        "decoder_base_dim": settings.decoder_width,
        "z_dim": settings.latent_channels,
        "dim_mult": list(settings.multipliers),
        "num_res_blocks": settings.blocks,
        "attn_scales": [],
        "temperal_downsample": list(settings.temporal),
        "dropout": 0.0,
        "latents_mean": list(settings.latent_mean) or zeros,
        "latents_std": list(settings.latent_std) or ones,
        "is_residual": settings.shortcuts,
        "in_channels": 3 * settings.patch**2,
        "out_channels": 3 * settings.patch**2,
        "patch_size": settings.patch if settings.patch > 1 else None,
        "scale_factor_temporal": settings.temporal_stride,
        "scale_factor_spatial": settings.spatial_stride,
    }


def text_settings(path: pathlib.Path, weights: str) -> TextSettings:
    """From a UMT5's config.json in transformers' layout; `weights` is the folder that the encoder stays in."""
    config = read_object(path)
    if config.get("model_type") != "umt5":
        raise InputError(f"{path}: a {config.get('model_type')!r} is no UMT5")
    return TextSettings(
        vocabulary=_take(config, "vocab_size", path),
        width=_take(config, "d_model", path),
        heads=_take(config, "num_heads", path),
        head_dim=_take(config, "d_kv", path),
        mlp=_take(config, "d_ff", path),
        layers=_take(config, "num_layers", path),
        buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
        padded=True,
        weights=weights,
    )


def image_settings(path: pathlib.Path, weights: str) -> ImageSettings:
    """From a CLIPVisionModel's config.json in transformers' layout; `weights` is the folder that it stays in."""
    config = read_object(path)
    config = config.get("vision_config", config)
    if (activation := config.get("hidden_act", "quick_gelu")) != "gelu":
        raise InputError(f"{path}: hidden_act is {activation!r}, only 'gelu' is built")
    return ImageSettings(
        width=_take(config, "hidden_size", path),
        heads=_take(config, "num_attention_heads", path),
        mlp=_take(config, "intermediate_size", path),
        layers=_take(config, "num_hidden_layers", path) - 1,
        patch=_take(config, "patch_size", path),
        size=_take(config, "image_size", path),
        weights=weights,
    )


def image_resize(folder: pathlib.Path) -> str:
    """How diffusers' image processor makes a square of a frame, from its folder: "crop" or "squash".

    Raises: InputError for a processor that does neither.
    """
    path = folder / "preprocessor_config.json"
    config = read_object(path)
    size = config.get("size", {"shortest_edge": 224})
    if isinstance(size, int) or "shortest_edge" in size:
        if config.get("do_center_crop", True):
            return "crop"
    elif not config.get("do_center_crop", True) and size.get("height") == size.get("width"):
        return "squash"
    raise InputError(f"{path}: size {size} with do_center_crop {config.get('do_center_crop')}; is it of a CLIP?")


def _take(config: dict, key: str, path: pathlib.Path):
    """A value of a configuration. Raises: InputError if it is not there."""
    if config.get(key) is None:
        raise InputError(f"{path}: no {key!r} in it; is it of a Wan model?")
    return config[key]
