"""A causal video autoencoder in Wan's form: both published geometries and any smaller one.

A clip of 1 + s * n frames becomes 1 + n latent frames, s = settings.temporal_stride. The first frame is encoded
alone, so that an image is a clip of one frame. `encode` and `decode` take a whole clip, or scan over it in chunks
with memory that does not grow with its length.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sora_jax.config.schema import AutoencoderSettings
from sora_jax.core.errors import InputError
from sora_jax.models.autoencoder.blocks import DownBlock, MidBlock, UpBlock
from sora_jax.models.autoencoder.conv import CausalConv, Downsample, Linear, Norm, Upsample
from sora_jax.models.autoencoder.pixels import pixel_shuffle, pixel_unshuffle
from sora_jax.models.layers.params import RngKeys

COLOURS = 3
INITIAL_LOGVAR = -6.0  # of a fresh posterior: noise as large as the means would hide detail until it is unlearned
LOGVAR_RANGE = (-30.0, 20.0)  # so that exp of it is a finite float32


def narrow_posterior_init(key, shape, dtype, out_sharding=None):
    """The bias [2 * C] of means and log variances: 0 and INITIAL_LOGVAR."""
    del key
    bias = jnp.repeat(jnp.array([0.0, INITIAL_LOGVAR], dtype), shape[0] // 2)
    return bias if out_sharding is None else jax.reshard(bias, out_sharding)


class Encoder(nnx.Module):
    """Pixels, or blocks of them -> features at the latents' size."""

    def __init__(self, settings: AutoencoderSettings, *, rngs: RngKeys):
        widths = [settings.width * m for m in (1, *settings.multipliers)]
        temporal = (*settings.temporal, None)
        self.conv_in = CausalConv(COLOURS * settings.patch**2, widths[0], (3, 3, 3), rngs=rngs)
        self.down_blocks = nnx.List([])
        for C_in, C_out, halve_time in zip(widths[:-1], widths[1:], temporal, strict=True):
            down = None if halve_time is None else Downsample(C_out, temporal=halve_time, rngs=rngs)
            self.down_blocks.append(
                DownBlock(C_in, C_out, settings.blocks, resample=down, shortcut=settings.shortcuts, rngs=rngs)
            )
        self.mid_block = MidBlock(widths[-1], rngs=rngs)
        self.norm_out = Norm(widths[-1], rngs=rngs)
        self.conv_out = CausalConv(widths[-1], 2 * settings.latent_channels, (3, 3, 3), rngs=rngs)

    def __call__(self, x, cache=None):
        cache_in, caches, cache_mid, cache_out = cache or (None, (None,) * len(self.down_blocks), None, None)
        x, cache_in = self.conv_in(x, cache_in)
        new = []
        for block, block_cache in zip(self.down_blocks, caches, strict=True):
            x, block_cache = block(x, block_cache)
            new.append(block_cache)
        x, cache_mid = self.mid_block(x, cache_mid)
        x, cache_out = self.conv_out(jax.nn.silu(self.norm_out(x)), cache_out)
        return x, (cache_in, tuple(new), cache_mid, cache_out)


class Decoder(nnx.Module):
    """Latents -> pixels, or blocks of them."""

    def __init__(self, settings: AutoencoderSettings, *, rngs: RngKeys):
        multipliers = settings.multipliers[::-1]
        widths = [settings.decoder_width * m for m in (multipliers[0], *multipliers)]
        temporal = (*settings.temporal[::-1], None)
        self.conv_in = CausalConv(settings.latent_channels, widths[0], (3, 3, 3), rngs=rngs)
        self.mid_block = MidBlock(widths[0], rngs=rngs)
        self.up_blocks = nnx.List([])
        C_in = widths[0]
        for C_out, double_time in zip(widths[1:], temporal, strict=True):
            # Without shortcuts the upsampling halves the channels.
            C_next = C_out if settings.shortcuts else C_out // 2
            up = None if double_time is None else Upsample(C_out, C_next, temporal=double_time, rngs=rngs)
            self.up_blocks.append(
                UpBlock(C_in, C_out, settings.blocks + 1, resample=up, shortcut=settings.shortcuts, rngs=rngs)
            )
            C_in = C_next
        self.norm_out = Norm(widths[-1], rngs=rngs)
        self.conv_out = CausalConv(widths[-1], COLOURS * settings.patch**2, (3, 3, 3), rngs=rngs)

    def __call__(self, x, cache=None):
        cache_in, cache_mid, caches, cache_out = cache or (None, None, (None,) * len(self.up_blocks), None)
        x, cache_in = self.conv_in(x, cache_in)
        x, cache_mid = self.mid_block(x, cache_mid)
        new = []
        for block, block_cache in zip(self.up_blocks, caches, strict=True):
            x, block_cache = block(x, block_cache)
            new.append(block_cache)
        x, cache_out = self.conv_out(jax.nn.silu(self.norm_out(x)), cache_out)
        return x, (cache_in, cache_mid, tuple(new), cache_out)


class Autoencoder(nnx.Module):
    """Video in [-1, 1] <-> latents, at a fraction of the frames, rows and columns.

    "Raw" latents are the posterior's. Normalised ones, which a diffusion model sees and files hold, are
    (raw - settings.latent_mean) / settings.latent_std.
    """

    def __init__(self, settings: AutoencoderSettings, *, rngs: RngKeys):
        check_settings(settings)
        self.settings = settings
        self.encoder = Encoder(settings, rngs=rngs)
        C = settings.latent_channels
        self.quant_conv = Linear(2 * C, 2 * C, bias_init=narrow_posterior_init, rngs=rngs)
        self.post_quant_conv = Linear(settings.latent_channels, settings.latent_channels, rngs=rngs)
        self.decoder = Decoder(settings, rngs=rngs)

    def encode_chunk(self, video, cache=None):
        """The posterior of the next frames of a clip, and the cache for the chunk after them.

        Args:
          video: [B, F, H, W, 3] float in [-1, 1]; F = 1 + s * n if cache is None (the clip begins), else s * n.
          cache: of the chunk before.
        Returns: (mean, logvar), each [B, F', H', W', C] float32, raw; cache.
        """
        x = pixel_unshuffle(video, self.settings.patch).astype(self.settings.dtype)
        x, cache = self.encoder(x, cache)
        mean, logvar = jnp.split(self.quant_conv(x).astype(jnp.float32), 2, axis=-1)
        return (mean, jnp.clip(logvar, *LOGVAR_RANGE)), cache

    def decode_chunk(self, latents, cache=None):
        """The next frames of a clip, and the cache for the chunk after them.

        Args:
          latents: raw, [B, F', H', W', C].
          cache: of the chunk before; None if the clip begins.
        Returns: video, [B, F, H, W, 3] float32, not clipped to [-1, 1]; cache.
        """
        x = self.post_quant_conv(latents.astype(self.settings.dtype))
        x, cache = self.decoder(x, cache)
        return pixel_shuffle(x, self.settings.patch).astype(jnp.float32), cache

    def encode(self, video, *, chunk: int = 0):
        """The posterior of a clip.

        Args:
          video: [B, F, H, W, 3] float in [-1, 1], F = 1 + s * n; NaN in, NaN out.
          chunk: latent frames at a time, in a scan whose memory does not grow with F; 0: all at once.
        Returns: (mean, logvar), each [B, F', H', W', C] float32, raw.
        Raises: InputError if the frames, rows or columns do not fit, or the type is no float.
        """
        check_video(video.shape, video.dtype, self.settings)
        return _in_chunks(self.encode_chunk, video, self.settings.temporal_stride, chunk)

    def decode(self, latents, *, chunk: int = 0):
        """The clip of raw latents.

        Args:
          latents: raw, [B, F', H', W', C].
          chunk: latent frames at a time, in a scan whose memory does not grow with F'; 0: all at once.
        Returns: video, [B, F, H, W, 3] float32, not clipped to [-1, 1].
        Raises: InputError if the channels do not fit, or the type is no float.
        """
        check_latents(latents.shape, latents.dtype, self.settings)
        return _in_chunks(self.decode_chunk, latents, 1, chunk)

    def to_latents(self, mean):
        """Normalised latents from raw ones."""
        offset, scale = latent_statistics(self.settings)
        return (mean - offset) / scale

    def from_latents(self, latents):
        """Raw latents from normalised ones."""
        offset, scale = latent_statistics(self.settings)
        return latents * scale + offset


def _in_chunks(step, x, stride, chunk):
    """step over x [B, F, ...]: first its first frame and the remainder, then chunks of chunk * stride frames."""
    size = chunk * stride
    if not chunk or x.shape[1] <= size:
        return step(x)[0]
    start = 1 + (x.shape[1] - 1) % size
    chunks = (x.shape[1] - start) // size
    first, cache = step(x[:, :start])
    shapes, _ = jax.eval_shape(step, x[:, start : start + size], cache)
    before, frames = (jax.tree.leaves(made)[0].shape[1] for made in (first, shapes))

    # Written into one buffer: joining the chunks afterwards would hold the whole output twice.
    def extended(made):
        return jnp.pad(made, ((0, 0), (0, chunks * frames), (0, 0), (0, 0), (0, 0)))

    def body(carry, index):
        cache, out = carry
        made, cache = step(jax.lax.dynamic_slice_in_dim(x, start + index * size, size, axis=1), cache)

        def write(out, made):
            return jax.lax.dynamic_update_slice_in_dim(out, made, before + index * frames, axis=1)

        return (cache, jax.tree.map(write, out, made)), None

    (_, out), _ = jax.lax.scan(body, (cache, jax.tree.map(extended, first)), jnp.arange(chunks))
    return out


def latent_statistics(settings: AutoencoderSettings) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each raw latent channel, [C] float32; 0 and 1 by default."""
    C = settings.latent_channels
    mean = settings.latent_mean or (0.0,) * C
    std = settings.latent_std or (1.0,) * C
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)


def check_settings(settings: AutoencoderSettings) -> None:
    """Raise InputError where the sizes of an autoencoder do not fit each other."""
    levels, steps = len(settings.multipliers), len(settings.temporal)
    if levels != steps + 1:
        raise InputError(
            f"config.autoencoder.temporal: {steps} values, but between {levels} multipliers (one a level) "
            f"there are {levels - 1} downsamplings"
        )
    for name in ("latent_mean", "latent_std"):
        values = getattr(settings, name)
        if len(values) not in (0, settings.latent_channels):
            raise InputError(
                f"config.autoencoder.{name}: {len(values)} values for {settings.latent_channels} latent channels"
            )


def check_video(shape: tuple[int, ...], dtype, settings: AutoencoderSettings) -> None:
    """Raise InputError unless video [B, F, H, W, 3] can be encoded."""
    if len(shape) != 5 or shape[-1] != COLOURS:
        raise InputError(f"video of shape {tuple(shape)}: [batch, frames, rows, columns, 3] is needed")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"video of type {dtype}: float in [-1, 1] is needed; uint8 x is x / 127.5 - 1")
    _, frames, *sides, _ = shape
    stride = settings.temporal_stride
    if (frames - 1) % stride:
        below = 1 + (frames - 1) // stride * stride
        nearest = f"{below + stride}" if frames < 1 else f"{below} or {below + stride}"
        raise InputError(f"video of {frames} frames: {stride} * n + 1 are needed, the nearest: {nearest}")
    for side, name in zip(sides, ("rows", "columns"), strict=True):
        multiple = settings.spatial_stride
        if side == 0 or side % multiple:
            below = side // multiple * multiple
            nearest = f"{multiple}" if below == 0 else f"{below} or {below + multiple}"
            raise InputError(f"video of {side} {name}: a multiple of {multiple} is needed, the nearest: {nearest}")


def check_latents(shape: tuple[int, ...], dtype, settings: AutoencoderSettings) -> None:
    """Raise InputError unless latents [B, F, H, W, C] can be decoded."""
    if len(shape) != 5 or shape[-1] != settings.latent_channels or 0 in shape:
        wanted = f"[batch, frames, rows, columns, {settings.latent_channels}]"
        raise InputError(f"latents of shape {tuple(shape)}: {wanted} is needed")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"latents of type {dtype}: float is needed")
