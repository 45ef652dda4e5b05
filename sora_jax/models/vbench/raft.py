"""RAFT: optical flow between two images.

Source: Teed & Deng 2020 (arXiv 2003.12039).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.models.vbench.conv import BatchNorm, Conv, FeatureEncoder, InstanceNorm, ResidualBlock
from sora_jax.models.vbench.correlation import LEVELS, correlation_pyramid, correlation_window, pixel_grid

RADIUS = 4
HIDDEN = 128
STRIDE = 8  # pixels of an image per pixel of its features


@dataclasses.dataclass(frozen=True)
class RaftSettings:
    """There is one size; VBench refines a flow 20 times."""

    iterations: int = 20


class Raft(nnx.Module):
    """Pairs of images to the flow from the first to the second."""

    def __init__(self, settings: RaftSettings, *, rngs):
        self.settings = settings
        widths = (64, 96, 128)
        self.fnet = FeatureEncoder(widths, 256, ResidualBlock, InstanceNorm, rngs=rngs)
        self.cnet = FeatureEncoder(widths, 2 * HIDDEN, ResidualBlock, BatchNorm, rngs=rngs)
        self.update_block = Update(rngs=rngs)

    def __call__(self, first, second):
        """Flow (x, y) in pixels, [B, H, W, 2], of images [B, H, W, 3] in [0, 255] whose sides STRIDE divides."""
        first, second = 2 * first / 255 - 1, 2 * second / 255 - 1
        pyramid = correlation_pyramid(self.fnet(first), self.fnet(second))
        hidden, context = jnp.split(self.cnet(first), 2, axis=-1)
        hidden, context = jnp.tanh(hidden), jax.nn.relu(context)
        grid = pixel_grid(*hidden.shape[1:3])

        def refine(carry, _):
            hidden, flow = carry
            window = correlation_window(pyramid, grid + flow, RADIUS)
            hidden = self.update_block(hidden, context, window, flow)
            return (hidden, flow + in_turn_relu(self.update_block.flow_head, hidden)), None

        start = (hidden, jnp.zeros((*hidden.shape[:3], 2)))
        (hidden, flow), _ = jax.lax.scan(refine, start, length=self.settings.iterations)
        return upsample_convex(flow, 0.25 * in_turn_relu(self.update_block.mask, hidden))


class Update(nnx.Module):
    """The recurrent unit that refines a flow, and its heads: a change of the flow, and weights to upsample it."""

    def __init__(self, *, rngs):
        self.encoder = MotionEncoder(rngs=rngs)
        self.gru = SeparableGru(HIDDEN, 2 * HIDDEN, rngs=rngs)
        self.flow_head = nnx.List([Conv(HIDDEN, 256, rngs=rngs), Conv(256, 2, rngs=rngs)])
        self.mask = nnx.List([Conv(HIDDEN, 256, rngs=rngs), Conv(256, 9 * STRIDE**2, 1, rngs=rngs)])

    def __call__(self, hidden, context, window, flow):
        return self.gru(hidden, jnp.concatenate([context, self.encoder(flow, window)], axis=-1))


class MotionEncoder(nnx.Module):
    """A flow and the correlations along it to 128 channels, of which the last two are the flow."""

    def __init__(self, *, rngs):
        self.convc1 = Conv(LEVELS * (2 * RADIUS + 1) ** 2, 256, 1, rngs=rngs)
        self.convc2 = Conv(256, 192, rngs=rngs)
        self.convf1 = Conv(2, 128, 7, rngs=rngs)
        self.convf2 = Conv(128, 64, rngs=rngs)
        self.conv = Conv(256, 126, rngs=rngs)

    def __call__(self, flow, window):
        seen = jax.nn.relu(self.convc2(jax.nn.relu(self.convc1(window))))
        moved = jax.nn.relu(self.convf2(jax.nn.relu(self.convf1(flow))))
        return jnp.concatenate([jax.nn.relu(self.conv(jnp.concatenate([seen, moved], axis=-1))), flow], axis=-1)


class SeparableGru(nnx.Module):
    """A gated recurrent unit along rows, then one along columns."""

    def __init__(self, hidden: int, C_in: int, *, rngs):
        for number, kernel in ((1, (1, 5)), (2, (5, 1))):
            for gate in "zrq":
                setattr(self, f"conv{gate}{number}", Conv(hidden + C_in, hidden, kernel, rngs=rngs))

    def __call__(self, hidden, x):
        for z, r, q in ((self.convz1, self.convr1, self.convq1), (self.convz2, self.convr2, self.convq2)):
            both = jnp.concatenate([hidden, x], axis=-1)
            update, reset = jax.nn.sigmoid(z(both)), jax.nn.sigmoid(r(both))
            new = jnp.tanh(q(jnp.concatenate([reset * hidden, x], axis=-1)))
            hidden = (1 - update) * hidden + update * new
        return hidden


def in_turn_relu(convs, x):
    """x after two convolutions with a ReLU between them."""
    first, second = convs
    return second(jax.nn.relu(first(x)))


def upsample_convex(flow, logits):
    """Flow of STRIDE times the rows and columns, each vector a weighted mean of its 3 x 3 coarse neighbours.

    Args:
      flow: [B, h, w, 2].
      logits: of the weights, [B, h, w, 9 * STRIDE^2].
    """
    B, h, w, _ = flow.shape
    weights = jax.nn.softmax(logits.reshape(B, h, w, 9, STRIDE, STRIDE), axis=3)
    padded = jnp.pad(STRIDE * flow, ((0, 0), (1, 1), (1, 1), (0, 0)))
    near = jnp.stack([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=3)
    fine = jnp.einsum("bhwkrc,bhwkd->bhrwcd", weights, near)
    return fine.reshape(B, h * STRIDE, w * STRIDE, 2)
