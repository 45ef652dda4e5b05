"""Conditioning frames of a video: clean latents that it keeps, and images that a video begins or ends with.

A transformer with condition channels (Wan's image-to-video) gets images beside the noise and through its image
branch. Any other transformer keeps the patches of given frames as they are (tasks.py), as Wan 2.2 TI2V does.
"""

import dataclasses
import pathlib

import jax
import numpy as np

from sora_jax.config.schema import MeshSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.data.conditioning_frames import add_mask_channels, clip_preprocess, grey_except
from sora_jax.generate.generator import Generator
from sora_jax.interop.encoders import load_encoder
from sora_jax.models.autoencoder.streaming import encode_stream
from sora_jax.models.image_encoder import see


@dataclasses.dataclass(frozen=True)
class ConditioningFrames:
    """The frames that a video is given.

    latents: clean, of the whole video, [F', h, w, C]; any values where nothing is given.
    conditioning_mask: the patches that are given and come back unchanged, [f, h, w] bool; None: none.
    strength: share of the solver's steps that are run on the other latents, in [0, 1]: 0 leaves the video as it
      is, 1 begins with noise.
    condition: channels beside the noise, [F', h, w, P_c].
    image: what the image encoder makes of the frames, [I, E].
    """

    latents: np.ndarray | None = None
    conditioning_mask: np.ndarray | None = None
    strength: float = 1.0
    condition: np.ndarray | None = None
    image: np.ndarray | None = None


def check_images(settings: Settings, image: pathlib.Path | None, last_image: pathlib.Path | None):
    """Raise InputError if these are not the images that a model with condition channels takes."""
    transformer = settings.transformer
    if image is None:
        if last_image is not None:
            raise InputError(f"--last-image={last_image}: name the first one as well, with --image")
        raise InputError("--image: names the picture that the video begins with; this model needs one")
    if transformer.image_positions and last_image is None:
        raise InputError("--last-image: names the picture that the video ends with; this model needs one")
    if last_image is not None and transformer.image_width and not transformer.image_positions:
        raise InputError(
            f"--last-image={last_image}: this model's image branch takes a first image, and no last one"
        )


def encode_images(generator: Generator, images: list[np.ndarray], frames: int) -> ConditioningFrames:
    """The conditioning of a model with condition channels for a video that begins (and ends) with these images.

    Args:
      images: at the size of the video, [H, W, 3] uint8, one or two.
      frames: length of the video.
    """
    transformer, encoder = generator.settings.transformer, generator.settings.image
    given = dict(zip((0, frames - 1), images, strict=False))
    video = grey_except(given, frames)
    latents = np.concatenate(list(encode_stream(generator.autoencoder_params, generator.autoencoder, video)))
    condition = add_mask_channels(latents, given, generator.autoencoder.temporal_stride)
    if not transformer.image_width:
        return ConditioningFrames(condition=condition)
    with jax.set_mesh(make_mesh(MeshSettings(), jax.local_devices()[:1])):
        seen = see(load_encoder(encoder), encoder, clip_preprocess(images, encoder.size, encoder.resize))
    return ConditioningFrames(condition=condition, image=seen)
