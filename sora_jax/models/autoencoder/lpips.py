"""LPIPS: perceptual distance of two images, by the features of a classifier.

Source: Zhang et al. 2018 (arXiv 1801.03924), version 0.1 with VGG-16 (arXiv 1409.1556).
"""

import jax
import jax.numpy as jnp

from sora_jax.models.autoencoder.pixels import split

# Channels of VGG-16's convolutions, stage by stage; the features of a stage are the output of its last one.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# ImageNet's mean and deviation, for pixels in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


def lpips_shapes() -> dict:
    """The shapes of `lpips`' parameters: of each stage, its convolutions and the weights of its channels."""
    stages, C_in = [], 3
    for widths in STAGES:
        convs = []
        for C_out in widths:
            convs.append({"kernel": (3, 3, C_in, C_out), "bias": (C_out,)})
            C_in = C_out
        stages.append({"convs": convs, "weights": (C_in,)})
    return {"stages": stages}


def lpips(params: dict, a, b):
    """The distance of each pair of images.

    Args:
      params: float32, shaped as `lpips_shapes` says.
      a, b: [B, H, W, 3] in [-1, 1], at least 16 rows and columns.
    Returns: [B] float32, 0 for equal images.
    """
    a, b = ((x - jnp.asarray(SHIFT)) / jnp.asarray(SCALE) for x in (a, b))
    distance = 0.0
    for number, stage in enumerate(params["stages"]):
        a, b = (_features(stage["convs"], x, pool=number > 0) for x in (a, b))
        # The constant is the published code's, with which the weights were fitted.
        units = [x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in (a, b)]
        distance += jnp.mean(jnp.square(units[0] - units[1]) @ stage["weights"], axis=(1, 2))
    return distance


def video_lpips(params: dict, a, b):
    """The mean of `lpips` over each clip's frames, [B, F, H, W, 3] -> [B], in the memory of one frame."""

    @jax.checkpoint
    def add(total, frames):
        return total + lpips(params, *frames), None

    frames = [jnp.moveaxis(x.astype(jnp.float32), 1, 0) for x in (a, b)]
    start = jnp.zeros_like(frames[0][0, :, 0, 0, 0])
    return jax.lax.scan(add, start, frames)[0] / a.shape[1]


def _features(convs, x, *, pool: bool):
    if pool:
        rows, columns = (n // 2 * 2 for n in x.shape[1:3])
        x = jnp.max(split(split(x[:, :rows, :columns], 2, 2), 1, 2), axis=(2, 4))
    for conv in convs:
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, conv["kernel"], (1, 1), "SAME", dimension_numbers=layout)
        x = jax.nn.relu(x + conv["bias"])
    return x
