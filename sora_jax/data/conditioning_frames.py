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


def clip_preprocess(frames: Sequence[np.ndarray], size: int, resize: str = "crop") -> np.ndarray:
    """Frames preprocessed for CLIP: squashed or cropped to a square, and normalised.

    Args:
      frames: [H, W, 3] uint8.
      size: side of the square, in pixels.
      resize: "squash", the whole frame by torch's bicubic interpolation without antialiasing, as in Wan's code;
        "crop", the shorter side scaled and the middle of the longer cut out, as in transformers' processor.
    Returns: [n, size, size, 3] float32, normalised.
    """
    make = {"squash": _squashed, "crop": _cropped}[resize]
    images = np.stack([make(frame, size) for frame in frames])
    return (images - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)


def _cropped(frame, size):
    H, W, _ = frame.shape
    height, width = (int(size * side / min(H, W)) for side in (H, W))
    scaled = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return scaled[top : top + size, left : left + size].astype(np.float32) / 255


def _squashed(frame, size):
    rows, columns = (_bicubic(side, size) for side in frame.shape[:2])
    return np.einsum("ih,jw,hwc->ijc", rows, columns, frame / 255, optimize=True).astype(np.float32)


def _bicubic(count: int, size: int) -> np.ndarray:
    """Weights of bicubic interpolation from `count` samples to `size`, [size, count].

    As torch.nn.functional.interpolate has it: Keys' kernel with a = -0.75, no antialiasing, edges repeated.
    Source: Keys 1981, "Cubic convolution interpolation for digital image processing", eq. 15.
    """
    a = -0.75
    at = np.float32(count / size) * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    taps = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
    distance = np.abs(at[:, None] - taps)
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    weights = np.zeros((size, count))
    rows = np.broadcast_to(np.arange(size)[:, None], taps.shape)
    np.add.at(weights, (rows, taps.clip(0, count - 1)), np.where(distance <= 1, near, far))
    return weights
