"""Wan's weights, as diffusers names and shapes them, into ours: tables of names, and one rule for the shapes."""

from collections.abc import Mapping

import jax
import numpy as np

from sora_jax.errors import InputError, nearest
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.module import init_params
from sora_jax.settings import AutoencoderSettings
from sora_jax.weights.store import named

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

# Our last part of a name -> theirs.
PARTS = {"kernel": "weight", "bias": "bias", "scale": "gamma"}


def autoencoder_modules(settings: AutoencoderSettings) -> dict[str, str]:
    """Our name of each module of the autoencoder that holds weights -> diffusers' name."""
    names = {"moments": "quant_conv", "unlatent": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        for ours in ("conv_in", "conv_out", "norm_out"):
            names[f"{half}.{ours}"] = f"{half}.{ours}"
        for i in (0, 1):
            names |= _block(f"{half}.middle.block{i + 1}", f"{half}.mid_block.resnets.{i}")
        attention = f"{half}.mid_block.attentions.0"
        for ours, theirs in (("norm", "norm"), ("qkv", "to_qkv"), ("out", "proj")):
            names[f"{half}.middle.attention.{ours}"] = f"{attention}.{theirs}"
    flat = 0  # Wan 2.1's encoder is one list of blocks and downsamplings
    for i in range(len(settings.multipliers)):
        level, down, up = f"encoder.levels.{i}", f"encoder.down_blocks.{i}", f"decoder.up_blocks.{i}"
        for j in range(settings.blocks):
            theirs = f"{down}.resnets.{j}" if settings.shortcuts else f"encoder.down_blocks.{flat + j}"
            names |= _block(f"{level}.blocks.{j}", theirs)
        flat += settings.blocks
        for j in range(settings.blocks + 1):
            names |= _block(f"decoder.levels.{i}.blocks.{j}", f"{up}.resnets.{j}")
        if i < len(settings.temporal):
            down = f"{down}.downsampler" if settings.shortcuts else f"encoder.down_blocks.{flat}"
            names |= _resample(f"{level}.resample", down)
            up = f"{up}.upsampler" if settings.shortcuts else f"{up}.upsamplers.0"
            names |= _resample(f"decoder.levels.{i}.resample", up)
            flat += 1
    return names


def _block(ours: str, theirs: str) -> dict[str, str]:
    parts = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"shortcut": "conv_shortcut"}
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()}


def _resample(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.space": f"{theirs}.resample.1", f"{ours}.time": f"{theirs}.time_conv"}


def autoencoder_from_diffusers(tensors: Mapping[str, np.ndarray], settings: AutoencoderSettings) -> dict:
    """Parameters of our autoencoder from an AutoencoderKLWan's tensors.

    Args:
      tensors: by diffusers' names, in torch's layout [C_out, C_in, ...].
    Raises: InputError naming a tensor that is missing, extra or of another shape.
    """
    abstract = jax.eval_shape(lambda: init_params(Autoencoder, settings, jax.random.key(0)))
    modules = autoencoder_modules(settings)
    used, leaves = set(), []
    for name, leaf in named(abstract):
        module, part = name.rsplit(".", 1)
        theirs = f"{modules[module]}.{PARTS[part]}"
        if theirs not in tensors:
            raise InputError(f"tensor {theirs!r} is missing; {nearest(theirs, tensors)}")
        used.add(theirs)
        leaves.append(_channels_last(theirs, tensors[theirs], leaf.shape))
    for extra in sorted(set(tensors) - used):
        raise InputError(f"tensor {extra!r} has no place in the model; {nearest(extra, used)}")
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _channels_last(name, tensor, shape):
    """[C_out, C_in, K...] -> [K..., C_in, C_out]; axes of size 1 come and go."""
    tensor = np.asarray(tensor, np.float32)
    turned = tensor.transpose(*range(2, tensor.ndim), 1, 0) if len(shape) > 1 else tensor
    if [n for n in turned.shape if n > 1] != [n for n in shape if n > 1]:
        raise InputError(f"tensor {name!r} has shape {list(tensor.shape)}, which is no {list(shape)} of ours")
    return turned.reshape(shape)
