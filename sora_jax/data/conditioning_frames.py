"""The inputs of an image-to-video transformer beside the noise: conditioning frames, encoded and seen by CLIP.

Source: Wan 2025 (arXiv 2503.20314), section 5.1; for CLIP Radford et al. 2021 (arXiv 2103.00020).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from sora_jax.config.schema import Settings, TransformerSettings

# Mean and standard deviation of the pixels that CLIP was trained on, in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def conditioning_frame_indices(settings: TransformerSettings, count: int) -> tuple[int, ...]:
    """The conditioning frames of a clip of `count` frames: the first, or the first and the last."""
    return (0, count - 1) if settings.image_positions else (0,)


def image_token_capacity(settings: Settings) -> int:
    """Image tokens of a packed sequence: for its maximum number of clips, rounded up for meshes to divide."""
    tokens = len(conditioning_frame_indices(settings.transformer, 1)) * settings.image.tokens
    return -(-settings.data.clips_per_sequence * tokens // 128) * 128


def grey_except(frames: Mapping[int, np.ndarray], count: int) -> Iterator[np.ndarray]:
    """A video that is grey except for its conditioning frames, for the autoencoder.

    Args:
      frames: conditioning frames by index, [H, W, 3] uint8.
      count: number of frames of the video.
    Yields: the next frame, [H, W, 3] float32 in [-1, 1].
    """
    grey = np.zeros_like(next(iter(frames.values())), np.float32)
    for i in range(count):
        yield frames[i].astype(np.float32) / 127.5 - 1 if i in frames else grey


def add_mask_channels(latents: np.ndarray, given: Collection[int], stride: int) -> np.ndarray:
    """The condition channels: a mask channel for each frame of a latent frame (1: given), then the latents.

    Args:
      latents: of the video that is grey except for its conditioning frames, [f, h, w, C].
      given: indices of the conditioning frames.
      stride: frames in a latent frame. The first latent frame holds one frame, whose mask is repeated.
    Returns: [f, h, w, stride + C], in the type of the latents.
    """
    f, h, w, _ = latents.shape
    of_frame = np.isin(np.arange((f - 1) * stride + 1), list(given))
    mask = np.concatenate([np.repeat(of_frame[:1], stride), of_frame[1:]]).reshape(f, 1, 1, stride)
    return np.concatenate([np.broadcast_to(mask, (f, h, w, stride)).astype(latents.dtype), latents], axis=-1)


def clip_preprocess(frames: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Preprocess frames for CLIP: scale the shorter side to `size`, crop around the centre, normalise.

    Args:
      frames: [H, W, 3] uint8 each.
      size: side of CLIP's input, in pixels.
    Returns: [n, size, size, 3] float32.
    """
    return np.stack([_square(frame, size) for frame in frames])


def _square(frame, size):
    H, W, _ = frame.shape
    height, width = (int(size * side / min(H, W)) for side in (H, W))
    scaled = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    middle = scaled[top : top + size, left : left + size].astype(np.float32) / 255
    return (middle - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
