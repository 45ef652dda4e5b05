"""diffusers' AutoencoderKLWan with the weights of wan_cases, fed and read in our layout."""

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers_wan import with_random_weights


def build_theirs(settings):
    """Their model of the same sizes as ours."""
    return AutoencoderKLWan(
        base_dim=settings.width,
        decoder_base_dim=settings.decoder_width,
        z_dim=settings.latent_channels,
        dim_mult=list(settings.multipliers),
        num_res_blocks=settings.blocks,
        temperal_downsample=list(settings.temporal),
        is_residual=settings.shortcuts,
        in_channels=3 * settings.patch**2,
        out_channels=3 * settings.patch**2,
        patch_size=settings.patch if settings.patch > 1 else None,
        scale_factor_temporal=settings.temporal_stride,
        scale_factor_spatial=settings.spatial_stride,
        latents_mean=[0.0] * settings.latent_channels,
        latents_std=[1.0] * settings.latent_channels,
    ).eval()


def make_theirs(settings):
    """Their model with random weights."""
    return with_random_weights(build_theirs(settings))


@torch.no_grad()
def encode_theirs(model, video) -> tuple[np.ndarray, np.ndarray]:
    """[B, F, H, W, 3] -> (mean, logvar), each [B, F', H', W', C]."""
    posterior = model.encode(_channels_first(video)).latent_dist
    return _channels_last(posterior.mean), _channels_last(posterior.logvar)


@torch.no_grad()
def decode_theirs(model, latents) -> np.ndarray:
    """[B, F', H', W', C] -> [B, F, H, W, 3], clipped to [-1, 1]."""
    return _channels_last(model.decode(_channels_first(latents)).sample)


def _channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def _channels_last(x):
    return np.moveaxis(x.numpy(), 1, -1)
