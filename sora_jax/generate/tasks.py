"""Tasks: the conditioning frames of each, and how the sampled latents become the video.

Latent frame 0 holds one frame of the video, each later one `stride`; a latent depends on the frames before it.
Conditioning frames that do not begin the video are encoded as if their first frame had stood still before.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from sora_jax.config.schema import AutoencoderSettings
from sora_jax.core.errors import InputError
from sora_jax.generate.generator import Generator
from sora_jax.generate.inputs.conditioning_images import ConditioningFrames, encode_images
from sora_jax.generate.inputs.input_video import InputVideo
from sora_jax.models.autoencoder.streaming import decode_stream, encode_stream

STILL = 4  # latent frames of stillness before a suffix: as many again change no latent by 0.1 %


@dataclasses.dataclass(frozen=True)
class Coder:
    """An autoencoder, and the grid of the model's patches.

    patch: rows and columns of latents in a patch, which spans one latent frame.
    """

    params: dict
    settings: AutoencoderSettings
    patch: tuple[int, int]

    @property
    def stride(self) -> int:
        """Frames in a latent that is not the first."""
        return self.settings.temporal_stride

    def encode(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        """[F, H, W, 3] uint8 -> [F', h, w, C]."""
        return np.concatenate(list(encode_stream(self.params, self.settings, frames)))

    def encoded(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same as a stream, latent frame by latent frame."""
        return itertools.chain.from_iterable(encode_stream(self.params, self.settings, frames))

    def encode_later(self, frames: np.ndarray) -> np.ndarray:
        """Latents of frames that do not begin their video, after those of stillness.

        Args:
          frames: [F, H, W, 3] uint8, F a multiple of the stride.
        """
        still = np.repeat(frames[:1], 1 + STILL * self.stride, axis=0)
        return self.encode(np.concatenate([still, frames]))

    def decode(self, latents: Iterable[np.ndarray]) -> np.ndarray:
        """[F', h, w, C] -> [F, H, W, 3] uint8."""
        return np.concatenate(list(decode_stream(self.params, self.settings, latents)))


def coder_of(generator: Generator) -> Coder:
    """The generator's coder. Raises: InputError if its patches span several latent frames."""
    p_f, p_h, p_w = generator.settings.transformer.patch
    if p_f > 1:
        raise InputError(f"the model's patches span {p_f} latent frames; a task needs patches of one")
    return Coder(generator.autoencoder_params, generator.autoencoder, (p_h, p_w))


@dataclasses.dataclass(frozen=True)
class Part:
    """Latents that are decoded in one stream, as a video of their own.

    latents: frames of them, [h, w, C], an array or a stream.
    skip: decoded frames at the beginning that are left out.
    replacements: frames to show instead, by number, [H, W, 3] uint8.
    replaced: the pixels that are replaced, [H, W] bool; None: all.
    """

    latents: Iterable[np.ndarray]
    skip: int = 0
    replacements: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    replaced: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of the solver, and what becomes of its latents.

    frames: length of the video that the model sees.
    conditioning, loop: as `sample_latents` takes them.
    parts: from the sampled latents to the parts of the video.
    """

    frames: int
    conditioning: ConditioningFrames | None = None
    parts: Callable[[np.ndarray], Iterable[Part]] = lambda latents: [Part(latents)]
    loop: bool = False


def render(params: dict, settings: AutoencoderSettings, parts: Iterable[Part]) -> Iterator[np.ndarray]:
    """The decoded frames of the parts, one part after the other, chunk by chunk, [F, H, W, 3] uint8."""
    for part in parts:
        number = 0
        for chunk in decode_stream(params, settings, part.latents):
            frames = np.array(chunk)
            for i in range(len(frames)):
                new = part.replacements.get(number + i)
                if new is not None:
                    frames[i] = (
                        new if part.replaced is None else np.where(part.replaced[..., None], new, frames[i])
                    )
            first = max(0, part.skip - number)
            number += len(frames)
            if first < len(frames):
                yield frames[first:]


def condition_on(coder: Coder, frames: int, spans: Mapping[int, np.ndarray]) -> ConditioningFrames:
    """Conditioning by whole latent frames of a video.

    Args:
      frames: latent frames of the video.
      spans: by the number of its first latent frame, [n, h, w, C].
    """
    _, h, w, C = next(iter(spans.values())).shape
    latents, given = np.zeros((frames, h, w, C), np.float32), np.zeros(frames, bool)
    for start, span in spans.items():
        latents[start : start + len(span)] = span
        given[start : start + len(span)] = True
    grid = (frames, h // coder.patch[0], w // coder.patch[1])
    return ConditioningFrames(latents, np.broadcast_to(given[:, None, None], grid))


def keyframes(coder: Coder, frames: int, pictures: Mapping[int, np.ndarray]) -> Task:
    """A video that shows these pictures, [H, W, 3] uint8, at the frames of these numbers.

    Raises: InputError if two lie in one latent frame, or one outside the video.
    """
    spans, replacements, held = {}, {}, {}
    for number, picture in sorted(pictures.items()):
        place = -(-number // coder.stride)
        if not 0 <= number < frames:
            raise InputError(f"a picture at frame {number} of a video of frames 0 to {frames - 1}")
        if place in spans:
            raise InputError(
                f"pictures at frames {held[place]} and {number}: both lie in one latent of the autoencoder, "
                f"which holds {coder.stride} frames"
            )
        held[place] = number
        if number == 0:
            spans[place] = coder.encode(picture[None])
        else:
            later = coder.encode_later(np.repeat(picture[None], coder.stride, axis=0))
            spans[place], replacements[number] = later[-1:], coder.decode(later)[-1]
    conditioning = condition_on(coder, (frames - 1) // coder.stride + 1, spans)
    return Task(frames, conditioning, lambda latents: [Part(latents, replacements=replacements)])


def animate(generator: Generator, frames: int, pictures: Mapping[int, np.ndarray]) -> Task:
    """A video with these pictures, given as the model knows it: beside the noise, or as latents that it keeps."""
    if generator.settings.transformer.condition_channels:
        return Task(frames, encode_images(generator, list(pictures.values()), frames))
    return keyframes(coder_of(generator), frames, pictures)


def edit(coder: Coder, video: np.ndarray, strength: float) -> Task:
    """A variation of the video [F, H, W, 3] uint8; strength in [0, 1], from the video itself to another one.

    Source: Meng et al. 2021 (arXiv 2108.01073), SDEdit.
    """
    return Task(len(video), ConditioningFrames(coder.encode(video), strength=strength))


def inpaint(coder: Coder, video: np.ndarray, kept: np.ndarray) -> Task:
    """The video [F, H, W, 3] uint8 with all pixels sampled anew but those that are kept, [H, W] bool.

    A patch is given if all of its pixels are kept. Kept pixels come back as the autoencoder reconstructs them.
    Raises: InputError if no patch is given, or every one.
    """
    latents = coder.encode(video)
    sides = [coder.settings.spatial_stride * p for p in coder.patch]
    H, W = kept.shape
    given = kept.reshape(H // sides[0], sides[0], W // sides[1], sides[1]).all(axis=(1, 3))
    if given.all() or not given.any():
        share = "everything" if given.all() else "nothing"
        raise InputError(f"{share} is kept of the video in whole patches of {sides[1]}x{sides[0]} pixels")
    conditioning = ConditioningFrames(latents, np.broadcast_to(given, (len(latents), *given.shape)))
    own = dict(enumerate(coder.decode(latents)))
    return Task(len(video), conditioning, lambda made: [Part(made, replacements=own, replaced=kept)])


def on_canvas(coder: Coder, video: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The video in the middle of a larger frame, aligned to patches, its edges repeated over the rest.

    Returns: ([F, H, W, 3] uint8; the pixels that are the video's, [H, W] bool).
    Raises: InputError if it does not fit, or fills the frame.
    """
    _, h, w, _ = video.shape
    if h > size[0] or w > size[1] or (h, w) == tuple(size):
        raise InputError(
            f"--size={size[1]}x{size[0]}: the video is {w}x{h}; name a larger size to paint around it"
        )
    sides = [coder.settings.spatial_stride * p for p in coder.patch]
    start = [min(round((S - s) / 2 / p) * p, S - s) for S, s, p in zip(size, (h, w), sides, strict=True)]
    pads = [(a, S - s - a) for a, S, s in zip(start, size, (h, w), strict=True)]
    kept = np.pad(np.ones((h, w), bool), pads)
    return np.pad(video, ((0, 0), *pads, (0, 0)), mode="edge"), kept


def loop(coder: Coder, frames: int) -> Task:
    """A video of frames - 1 frames that repeats without a seam.

    It consists of later latent frames only, and is decoded after its own end.
    """

    def parts(latents):
        looped = latents[1:]
        before = np.take(looped, np.arange(-2 * STILL, 0), axis=0, mode="wrap")
        return [Part(np.concatenate([before, looped]), skip=1 + coder.stride * (2 * STILL - 1))]

    return Task(frames, loop=True, parts=parts)


def connect(
    coder: Coder, frames: int, first: InputVideo, second: InputVideo, between: int, *, close=False
) -> Task:
    """The first video, `between` sampled latent frames, and the second video.

    Args:
      frames: that the model sees at once; they hold as much of both videos as there is room for.
      close: leave out the second video, which is the first one: a loop.
    Raises: InputError if there is no room for both, or one is too short.
    """
    stride, room = coder.stride, (frames - 1) // coder.stride + 1 - between
    if room < 2:
        most = (frames - 1) // stride - 1
        raise InputError(f"{between * stride} frames between two videos; --frames={frames} leaves {most * stride}")
    after = min(room // 2, second.frames // stride)
    before = min(room - after, (first.frames - 1) // stride + 1)
    after = min(room - before, second.frames // stride)
    tail = np.stack(list(first.read(first.frames - 1 - stride * (before - 1))))
    later = coder.encode_later(np.stack(list(second.read(0, stride * after))))[-after:]
    n = before + between + after
    conditioning = condition_on(coder, n, {0: coder.encode(tail), before + between: later})

    def parts(latents):
        made = latents[before : before + between]
        shown = [Part(itertools.chain(coder.encoded(last_frames(coder, first)), made))]
        return shown if close else [*shown, Part(coder.encoded(first_frames(coder, second)))]

    return Task(1 + stride * (n - 1), conditioning, parts)


def last_frames(coder: Coder, video: InputVideo) -> Iterator[np.ndarray]:
    """The video without the first frames that the autoencoder can't take: 1 + n stride frames are left."""
    return video.read((video.frames - 1) % coder.stride)


def first_frames(coder: Coder, video: InputVideo) -> Iterator[np.ndarray]:
    """The video without the last frames that the autoencoder can't take: 1 + n stride frames are left."""
    return video.read(0, (video.frames - 1) // coder.stride * coder.stride + 1)
