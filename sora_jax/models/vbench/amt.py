"""AMT-S: the frame in the middle between two frames.

Source: Li et al. 2023 (arXiv 2304.09790); its decoders are those of IFRNet, Kong et al. 2022 (arXiv 2205.14620).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.models.vbench.conv import (
    BottleneckBlock,
    Conv,
    DoublingConv,
    FeatureEncoder,
    InstanceNorm,
    in_turn,
)
from sora_jax.models.vbench.correlation import (
    LEVELS,
    correlation_pyramid,
    correlation_window,
    pixel_grid,
    warp,
)
from sora_jax.models.vbench.resize import resize

RADIUS = 3
FLOWS = 3  # from the new frame to each of the two, in the last decoder
SIDE = 20  # channels that the second and fourth convolution of a decoder change
WIDTHS = (20, 32, 44, 56)  # of the features at a half, a quarter, ... of the frame's size
HIDDEN = 76
TIME = 0.5
STRIDE = 16  # pixels of a frame per pixel of its coarsest features


@dataclasses.dataclass(frozen=True)
class AmtSettings:
    """There is one AMT-S; its sizes are the constants of this file."""


class Amt(nnx.Module):
    """Pairs of frames to the frame between them."""

    def __init__(self, settings: AmtSettings, *, rngs):
        del settings
        self.feat_encoder = FeatureEncoder((32, 64, 96), 84, BottleneckBlock, InstanceNorm, rngs=rngs)
        self.encoder = Pyramid(rngs=rngs)
        one, two, three, four = WIDTHS
        self.decoder4 = Decoder(2 * four + 1, 2 * four, three + 4, rngs=rngs)
        self.decoder3 = Decoder(3 * three + 4, 3 * three, two + 4, rngs=rngs)
        self.decoder2 = Decoder(3 * two + 4, 3 * two, one + 4, rngs=rngs)
        self.decoder1 = Decoder(3 * one + 4, 3 * one, 8 * FLOWS, rngs=rngs)
        self.update4 = Update(three, 1, rngs=rngs)
        self.update3 = Update(two, 2, rngs=rngs)
        self.update2 = Update(one, 4, rngs=rngs)
        self.comb_block = nnx.List(
            [Conv(3 * FLOWS, 6 * FLOWS, rngs=rngs), PRelu(6 * FLOWS), Conv(6 * FLOWS, 3, rngs=rngs)]
        )

    def __call__(self, first, second):
        """The frame between frames [B, H, W, 3] in [0, 1], whose sides STRIDE divides; of the same shape."""
        mean = jnp.mean(jnp.concatenate([first, second], axis=1), axis=(1, 2, 3), keepdims=True)
        first, second = first - mean, second - mean
        return jnp.clip(self.interpolate(first, second, self.decode(first, second), mean), 0, 1)

    def decode(self, first, second):
        """(the last decoder's output, the flows that it corrects), from coarse to fine along the correlation."""
        of_first, of_second = self.feat_encoder(first), self.feat_encoder(second)
        pyramids = correlation_pyramid(of_first, of_second), correlation_pyramid(of_second, of_first)
        grid = pixel_grid(*of_first.shape[1:3])
        features = tuple(zip(self.encoder(first), self.encoder(second), strict=True))

        time = jnp.full((*features[3][0].shape[:3], 1), TIME)
        made = self.decoder4(jnp.concatenate([*features[3], time], axis=-1))
        flow, hidden = made[..., :4], made[..., 4:]
        decoders = (self.decoder3, self.decoder2, self.decoder1)
        updates = (self.update4, self.update3, self.update2)
        for level, decoder, update in zip((2, 1, 0), decoders, updates, strict=True):
            factor = update.factor
            coarse = resize(flow, grid.shape[1:3]) / factor
            # From the new frame's motion to that between the two frames, as if it were uniform.
            windows = [
                correlation_window(pyramids[0], grid + coarse[..., 2:] / TIME, RADIUS),
                correlation_window(pyramids[1], grid + coarse[..., :2] / (1 - TIME), RADIUS),
            ]
            changes = update(hidden, coarse, jnp.concatenate(windows, axis=-1))
            hidden, flow = hidden + changes[0], flow + changes[1]
            warped = [warp(x, flow[..., 2 * n : 2 * n + 2]) for n, x in enumerate(features[level])]
            made = decoder(jnp.concatenate([hidden, *warped, flow], axis=-1))
            if level:
                hidden = made[..., 4:]
                flow = made[..., :4] + 2 * _doubled(flow)
        return made, 2 * _doubled(flow)

    def interpolate(self, first, second, decoded, mean):
        """The mean of the frames that several pairs of flows make, and a correction."""
        made, flow = decoded
        B, H, W, _ = made.shape
        n = FLOWS
        *changes, mask, rest = jnp.split(made, [2 * n, 4 * n, 5 * n], axis=-1)
        mask = jax.nn.sigmoid(mask)[..., None]
        warped = []
        for image, change, coarse in zip((first, second), changes, jnp.split(flow, 2, axis=-1), strict=True):
            flows = change.reshape(B, H, W, n, 2) + coarse[..., None, :]
            warped.append(jnp.stack([warp(image, flows[..., i, :]) for i in range(n)], axis=3))
        frames = mask * warped[0] + (1 - mask) * warped[1] + mean[..., None] + rest.reshape(B, H, W, n, 3)
        return jnp.mean(frames, axis=3) + in_turn(self.comb_block, frames.reshape(B, H, W, 3 * n))


class PRelu(nnx.Module):
    """x above 0; below it x times a weight of its channel."""

    def __init__(self, C):
        self.weight = nnx.Param(jnp.full((C,), 0.25))

    def __call__(self, x):
        return jnp.where(x > 0, x, x * self.weight[...])


class Pyramid(nnx.Module):
    """A frame to its features at a half, a quarter, an eighth and a sixteenth of its size."""

    def __init__(self, *, rngs):
        C = 3
        for number, width in enumerate(WIDTHS, 1):
            halving = nnx.List([Conv(C, width, stride=2, rngs=rngs), PRelu(width)])
            setattr(self, f"pyramid{number}", nnx.List([halving, conv_prelu(width, width, rngs=rngs)]))
            C = width

    def __call__(self, x):
        features = []
        for first, second in (self.pyramid1, self.pyramid2, self.pyramid3, self.pyramid4):
            features.append(x := in_turn([*first, *second], x))
        return features


class Decoder(nnx.Module):
    """Features to others of twice the rows and columns."""

    def __init__(self, C_in, C, C_out, *, rngs):
        self.convblock = nnx.List(
            [conv_prelu(C_in, C, rngs=rngs), SideBlock(C, rngs=rngs), DoublingConv(C, C_out, rngs=rngs)]
        )

    def __call__(self, x):
        first, block, doubled = self.convblock
        return doubled(block(in_turn(first, x)))


class SideBlock(nnx.Module):
    """Five convolutions beside a shortcut; two of them change the last SIDE channels alone."""

    def __init__(self, C, *, rngs):
        self.conv1, self.conv3 = conv_prelu(C, C, rngs=rngs), conv_prelu(C, C, rngs=rngs)
        self.conv2, self.conv4 = conv_prelu(SIDE, SIDE, rngs=rngs), conv_prelu(SIDE, SIDE, rngs=rngs)
        self.conv5, self.prelu = Conv(C, C, rngs=rngs), PRelu(C)

    def __call__(self, x):
        y = x
        for whole, side in ((self.conv1, self.conv2), (self.conv3, self.conv4)):
            y = in_turn(whole, y)
            y = jnp.concatenate([y[..., :-SIDE], in_turn(side, y[..., -SIDE:])], axis=-1)
        return self.prelu(x + self.conv5(y))


class Update(nnx.Module):
    """Changes of features and flows by the correlations along the flows, at an eighth of the frame's size.

    Args:
      factor: by how much the features are larger than that.
    """

    def __init__(self, C, factor, *, rngs):
        self.factor = factor
        self.convc1 = Conv(2 * LEVELS * (2 * RADIUS + 1) ** 2, 64, 1, rngs=rngs)
        self.convf1 = Conv(4, 40, 7, rngs=rngs)
        self.convf2 = Conv(40, 20, rngs=rngs)
        self.conv = Conv(84, 68, rngs=rngs)
        self.gru = nnx.List([Conv(68 + 4 + C, HIDDEN, rngs=rngs), Conv(HIDDEN, HIDDEN, rngs=rngs)])
        self.feat_head = nnx.List([Conv(HIDDEN, HIDDEN, rngs=rngs), Conv(HIDDEN, C, rngs=rngs)])
        self.flow_head = nnx.List([Conv(HIDDEN, HIDDEN, rngs=rngs), Conv(HIDDEN, 4, rngs=rngs)])

    def __call__(self, hidden, flow, windows):
        size, coarse = hidden.shape[1:3], flow.shape[1:3]
        seen = _leaky(self.convc1(windows))
        moved = _leaky(self.convf2(_leaky(self.convf1(flow))))
        both = _leaky(self.conv(jnp.concatenate([seen, moved], axis=-1)))
        x = _two(self.gru, jnp.concatenate([both, flow, resize(hidden, coarse)], axis=-1))
        feature, change = _two(self.feat_head, x), _two(self.flow_head, x)
        return resize(feature, size), self.factor * resize(change, size)


def conv_prelu(C_in, C_out, *, rngs):
    return nnx.List([Conv(C_in, C_out, rngs=rngs), PRelu(C_out)])


def _two(convs, x):
    first, second = convs
    return second(_leaky(first(x)))


def _leaky(x):
    return jax.nn.leaky_relu(x, 0.1)


def _doubled(x):
    return resize(x, (2 * x.shape[1], 2 * x.shape[2]))
