"""A patch discriminator for video: a score of each block of pixels, real or decoded.

Source: the patch discriminator of Isola et al. 2016 (arXiv 1611.07004) with its convolutions in three dimensions.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.models.autoencoder.conv import Linear, Norm, conv3d, fan_in_init, gathered, weight
from sora_jax.models.layers.params import RngKeys

STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))  # frames, rows and columns, layer by layer


@dataclasses.dataclass(frozen=True)
class DiscriminatorSettings:
    """width: channels of the first layer, doubled with each."""

    width: int = 64
    dtype: str = "bfloat16"


class SameConv(nnx.Module):
    """A 3x3x3 convolution that is not causal: it sees one frame to each side."""

    def __init__(self, C_in: int, C_out: int, stride: tuple[int, int, int], *, rngs: RngKeys):
        self.stride = stride
        self.kernel = weight(fan_in_init, (3, 3, 3, C_in, C_out), rngs=rngs)
        self.bias = weight(jax.nn.initializers.zeros, (C_out,), rngs=rngs)

    def __call__(self, x):
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        return conv3d(x, gathered(self.kernel, x.dtype), stride=self.stride) + gathered(self.bias, x.dtype)


class Discriminator(nnx.Module):
    """Video [B, F, H, W, 3] in [-1, 1] -> scores [B, f, h, w] float32, above 0 for real.

    One frame is enough; rows and columns are multiples of 8. No layer mixes clips: the loss of a batch is the sum
    of its clips' losses.
    """

    def __init__(self, settings: DiscriminatorSettings, *, rngs: RngKeys):
        self.dtype = settings.dtype
        widths = [3, *(settings.width * 2**i for i in range(len(STRIDES)))]
        self.convs = nnx.List([])
        self.norms = nnx.List([])
        for C_in, C_out, stride in zip(widths[:-1], widths[1:], STRIDES, strict=True):
            self.convs.append(SameConv(C_in, C_out, stride, rngs=rngs))
            self.norms.append(Norm(C_out, rngs=rngs))
        self.out = Linear(widths[-1], 1, rngs=rngs)

    def __call__(self, video):
        x = video.astype(self.dtype)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.leaky_relu(norm(conv(x)), 0.2)
        return self.out(x)[..., 0].astype(jnp.float32)
