"""Convolutions, norms and the blocks that RAFT, AMT and MUSIQ are made of; images are [B, H, W, C] float32.

The attributes bear the names of the published weights.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.models.autoencoder.conv import fan_in_init

LAYOUT = ("NHWC", "HWIO", "NHWC")


class Conv(nnx.Module):
    """A convolution, padded by half of its kernel.

    Args:
      kernel: its side, or (rows, columns).
    """

    def __init__(self, C_in, C_out, kernel=3, *, stride=1, rngs):
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.stride, self.padding = stride, [(side // 2, side // 2) for side in sides]
        self.kernel = nnx.Param(fan_in_init(rngs.params(), (*sides, C_in, C_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((C_out,)))

    def __call__(self, x):
        strides = (self.stride, self.stride)
        y = jax.lax.conv_general_dilated(x, self.kernel[...], strides, self.padding, dimension_numbers=LAYOUT)
        return y + self.bias[...]


class DoublingConv(nnx.Module):
    """A transposed convolution with a kernel of 4 x 4 and a stride of 2: twice the rows and columns."""

    def __init__(self, C_in, C_out, *, rngs):
        self.kernel = nnx.Param(fan_in_init(rngs.params(), (4, 4, C_in, C_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((C_out,)))

    def __call__(self, x):
        kernel, ones = self.kernel[...][::-1, ::-1], (1, 1)
        y = jax.lax.conv_general_dilated(x, kernel, ones, [(2, 2)] * 2, (2, 2), dimension_numbers=LAYOUT)
        return y + self.bias[...]


class BatchNorm(nnx.Module):
    """Each channel by the statistics of the training data."""

    def __init__(self, C):
        self.scale, self.bias = nnx.Param(jnp.ones((C,))), nnx.Param(jnp.zeros((C,)))
        self.mean, self.var = nnx.Param(jnp.zeros((C,))), nnx.Param(jnp.ones((C,)))

    def __call__(self, x):
        return (x - self.mean[...]) * jax.lax.rsqrt(self.var[...] + 1e-5) * self.scale[...] + self.bias[...]


class InstanceNorm(nnx.Module):
    """Each channel of each image by its own mean and deviation."""

    def __init__(self, C):
        del C

    def __call__(self, x):
        x = x - jnp.mean(x, axis=(1, 2), keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=(1, 2), keepdims=True) + 1e-5)


class ResidualBlock(nnx.Module):
    """Two convolutions of 3 x 3 beside a shortcut."""

    def __init__(self, C_in, C_out, norm, *, stride, rngs):
        self.conv1 = Conv(C_in, C_out, stride=stride, rngs=rngs)
        self.conv2 = Conv(C_out, C_out, rngs=rngs)
        self.norm1, self.norm2 = norm(C_out), norm(C_out)
        self.downsample = shortcut(C_in, C_out, norm, stride, rngs=rngs)

    def __call__(self, x):
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = jax.nn.relu(self.norm2(self.conv2(y)))
        return jax.nn.relu(in_turn(self.downsample, x) + y)


class BottleneckBlock(nnx.Module):
    """A convolution of 3 x 3 on a quarter of the channels beside a shortcut."""

    def __init__(self, C_in, C_out, norm, *, stride, rngs):
        self.conv1 = Conv(C_in, C_out // 4, 1, rngs=rngs)
        self.conv2 = Conv(C_out // 4, C_out // 4, stride=stride, rngs=rngs)
        self.conv3 = Conv(C_out // 4, C_out, 1, rngs=rngs)
        self.norm1, self.norm2, self.norm3 = norm(C_out // 4), norm(C_out // 4), norm(C_out)
        self.downsample = shortcut(C_in, C_out, norm, stride, rngs=rngs)

    def __call__(self, x):
        y = x
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3)):
            y = jax.nn.relu(norm(conv(y)))
        return jax.nn.relu(in_turn(self.downsample, x) + y)


class FeatureEncoder(nnx.Module):
    """Images to features at an eighth of their rows and columns, as in RAFT.

    Args:
      widths: channels of the three stages.
      block, norm: classes.
    """

    def __init__(self, widths, C_out, block, norm, *, rngs):
        C = widths[0]
        self.conv1, self.norm1 = Conv(3, C, 7, stride=2, rngs=rngs), norm(C)
        for number, (width, stride) in enumerate(zip(widths, (1, 2, 2), strict=True), 1):
            first = block(C, width, norm, stride=stride, rngs=rngs)
            second = block(width, width, norm, stride=1, rngs=rngs)
            setattr(self, f"layer{number}", nnx.List([first, second]))
            C = width
        self.conv2 = Conv(C, C_out, 1, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        return self.conv2(in_turn([*self.layer1, *self.layer2, *self.layer3], x))


def shortcut(C_in, C_out, norm, stride, *, rngs):
    """The layers of a block's shortcut: none, or a convolution and a norm where the block makes images smaller."""
    return nnx.List([] if stride == 1 else [Conv(C_in, C_out, 1, stride=stride, rngs=rngs), norm(C_out)])


def in_turn(layers, x):
    """x after all layers."""
    for layer in layers:
        x = layer(x)
    return x
