"""Images that a video begins or ends with: read, encoded, and given to the transformer in the way that it knows.

A transformer with condition channels (Wan's image-to-video) is given them beside the noise, and by its image
branch. Any other one holds the first frame's patches as they are, at noise level 0, as Wan 2.2 TI2V does.
"""

import dataclasses
import pathlib

import jax
import numpy as np
import rich.console

from sora_jax.config import parse_size
from sora_jax.data.clips import probe, read_clip
from sora_jax.data.given import clip_images, grey_but, with_mask
from sora_jax.errors import InputError
from sora_jax.mesh import make_mesh
from sora_jax.models.image_encoder import see
from sora_jax.models.streaming import encode_stream
from sora_jax.patches import PatchBatch, patchify
from sora_jax.settings import MeshSettings, SampleSettings, Settings
from sora_jax.weights.encoders import load_encoder


@dataclasses.dataclass(frozen=True)
class Given:
    """What every video of a batch is given.

    known: clean latents that it begins with, [f, h, w, C].
    condition: what is given beside the noise, [F', h, w, P_c]; image: what an image encoder sees, [I, E].
    """

    known: np.ndarray | None = None
    condition: np.ndarray | None = None
    image: np.ndarray | None = None


def check_images(settings: Settings, image: pathlib.Path | None, last_image: pathlib.Path | None):
    """Raise InputError if these are not the images that such a model takes."""
    transformer = settings.transformer
    if image is None:
        if last_image is not None:
            raise InputError(f"--last-image={last_image}: name the first one as well, with --image")
        if transformer.condition_channels:
            raise InputError("--image: names the picture that the video begins with; this model needs one")
        return
    if transformer.image_positions and last_image is None:
        raise InputError("--last-image: names the picture that the video ends with; this model needs one")
    if last_image is not None and not transformer.condition_channels:
        raise InputError(f"--last-image={last_image}: this model takes a first image, --image, and no last one")
    if last_image is not None and transformer.image_width and not transformer.image_positions:
        raise InputError(
            f"--last-image={last_image}: this model's image branch takes a first image, and no last one"
        )
    if not transformer.condition_channels and transformer.patch[0] > 1:
        raise InputError(
            f"--image={image}: the model's patches span {transformer.patch[0]} frames, of which one can't be given"
        )


def read_images(
    paths: list[pathlib.Path], settings: SampleSettings, console: rich.console.Console
) -> list[np.ndarray]:
    """Pictures (or the first frames of videos) at the size of the video, [H, W, 3] uint8; says what was done.

    Raises: InputError if one can't be read.
    """
    frames, (H, W) = [], video_size(settings)
    for path in paths:
        picture = probe(path)
        frames.append(read_clip(picture, (H, W), fps=1.0, frames=1)[0])
        if (picture.height, picture.width) != (H, W):
            note = f"{picture.width}x{picture.height}, scaled to cover {W}x{H} and cropped around the centre"
            console.print(f"note: {path}: {note}", highlight=False, soft_wrap=True)
    return frames


def video_size(settings: SampleSettings) -> tuple[int, int]:
    """(height, width) of the videos."""
    size = parse_size(settings.size, "--size")
    return (size, size) if isinstance(size, int) else size


def give_images(generator, images: list[np.ndarray], frames: int) -> Given:
    """What a video of so many frames is given, for it to begin with the first image and end with the second.

    Args:
      generator: of `pipeline.load_generator`.
      images: of `read_images`, one or two.
    """
    settings, autoencoder, of_images = (
        generator.settings.transformer,
        generator.autoencoder,
        generator.settings.image,
    )

    def encode(video):
        return np.concatenate(list(encode_stream(generator.autoencoder_params, autoencoder, video)))

    if not settings.condition_channels:
        return Given(known=encode(images[0][None]))
    at = dict(zip((0, frames - 1), images, strict=False))
    condition = with_mask(encode(grey_but(at, frames)), at, autoencoder.temporal_stride)
    if not settings.image_width:
        return Given(condition=condition)
    with jax.set_mesh(make_mesh(MeshSettings(), jax.local_devices()[:1])):
        seen = see(load_encoder(of_images), of_images, clip_images(images, of_images.size))
    return Given(condition=condition, image=seen)


def put_given(batch: PatchBatch, given: Given, patch: tuple[int, int, int]) -> PatchBatch:
    """The batch (numpy) with the same given to each of its rows."""
    B, N, _ = batch.patches.shape

    def rows(x):
        return np.broadcast_to(x, (B, *x.shape))

    if given.known is not None:
        patches = patchify(given.known, patch)
        known = np.arange(N) < len(patches)
        first = np.zeros_like(batch.patches[0])
        first[known] = patches
        batch = batch.replace(patches=rows(first), known=rows(known))
    if given.condition is not None:
        batch = batch.replace(condition=rows(patchify(given.condition, patch)))
    if given.image is not None:
        batch = batch.replace(image=rows(given.image), image_segments=np.ones((B, len(given.image)), np.int32))
    return batch
