"""Images that a video begins or ends with: read, encoded, and given to the transformer in the way that it knows.

A transformer with condition channels (Wan's image-to-video) is given them beside the noise, and by its image
branch. Any other one holds the patches of given frames as they are (tasks.py), as Wan 2.2 TI2V does.
"""

import dataclasses
import pathlib

import jax
import numpy as np

from sora_jax.config.load import parse_size
from sora_jax.config.schema import MeshSettings, SampleSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.patches import PatchBatch, patchify
from sora_jax.data.conditioning_frames import add_mask_channels, clip_preprocess, grey_except
from sora_jax.interop.encoders import load_encoder
from sora_jax.models.autoencoder.streaming import encode_stream
from sora_jax.models.image_encoder import see


@dataclasses.dataclass(frozen=True)
class Given:
    """What every video of a batch is given.

    latents: clean, of the whole video, [F', h, w, C]; whatever they are where nothing is known.
    known: which of their patches are given and come back as they are, [f, h, w] bool; None: none.
    strength: share of the solver's steps that are run on the other latents: 0 leaves the video itself, 1 begins
      with noise. The first one's time depends on the shift, as the times of all steps do.
    condition: what is given beside the noise, [F', h, w, P_c]; image: what an image encoder sees, [I, E].
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


def video_size(settings: SampleSettings) -> tuple[int, int]:
    """(height, width) of the videos."""
    size = parse_size(settings.size, "--size")
    return (size, size) if isinstance(size, int) else size


def give_images(generator, images: list[np.ndarray], frames: int) -> Given:
    """What a model with condition channels is given for so many frames to begin with the first image and end with
    the second.

    Args:
      generator: of `pipeline.load_generator`.
      images: at the size of the video, [H, W, 3] uint8, one or two.
    """
    settings, autoencoder, of_images = (
        generator.settings.transformer,
        generator.autoencoder,
        generator.settings.image,
    )

    def encode(video):
        return np.concatenate(list(encode_stream(generator.autoencoder_params, autoencoder, video)))

    at = dict(zip((0, frames - 1), images, strict=False))
    condition = add_mask_channels(encode(grey_except(at, frames)), at, autoencoder.temporal_stride)
    if not settings.image_width:
        return Given(condition=condition)
    with jax.set_mesh(make_mesh(MeshSettings(), jax.local_devices()[:1])):
        seen = see(load_encoder(of_images), of_images, clip_preprocess(images, of_images.size))
    return Given(condition=condition, image=seen)


def put_conditioning(batch: PatchBatch, given: Given, patch: tuple[int, int, int]) -> PatchBatch:
    """The batch (numpy) with the same given to each of its rows."""
    B = len(batch.patches)

    def rows(x):
        return np.broadcast_to(x, (B, *x.shape))

    if given.latents is not None:
        batch = batch.replace(patches=rows(patchify(given.latents, patch).astype(np.float32)))
    if given.conditioning_mask is not None:
        batch = batch.replace(conditioning_mask=rows(given.conditioning_mask.reshape(-1)))
    if given.condition is not None:
        batch = batch.replace(condition=rows(patchify(given.condition, patch)))
    if given.image is not None:
        batch = batch.replace(image=rows(given.image), image_segment_ids=np.ones((B, len(given.image)), np.int32))
    return batch
