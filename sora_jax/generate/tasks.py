"""Tasks: what a model is given for each, and how the latents that it makes become the video.

Latent 0 holds one frame, each later one `stride`; a latent depends on the frames before it. What is given and does
not begin the video is encoded as if its first frame had stood still before; docs/tasks.md has the derivations.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from sora_jax.config.schema import AutoencoderSettings
from sora_jax.core.errors import InputError
from sora_jax.generate.conditioning_images import Given, give_images
from sora_jax.generate.input_video import Footage
from sora_jax.models.autoencoder.streaming import decode_stream, encode_stream

STILL = 4  # latent frames of stillness: as many again change no latent by 0.1 %


@dataclasses.dataclass(frozen=True)
class Coder:
    """An autoencoder and the grid of the model's patches.

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
        """Latents of frames, a multiple of the stride, that do not begin their video; those of stillness first."""
        still = np.repeat(frames[:1], 1 + STILL * self.stride, axis=0)
        return self.encode(np.concatenate([still, frames]))

    def decode(self, latents: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(decode_stream(self.params, self.settings, latents)))


def coder_of(generator) -> Coder:
    """That of `pipeline.load_generator`'s model. Raises: InputError if its patches span several latent frames."""
    p_f, p_h, p_w = generator.settings.transformer.patch
    if p_f > 1:
        raise InputError(f"the model's patches span {p_f} latent frames, of which one alone can't be given")
    return Coder(generator.autoencoder_params, generator.autoencoder, (p_h, p_w))


@dataclasses.dataclass(frozen=True)
class Part:
    """Frames that are decoded in one stream, as a video of their own.

    latents: frames of them, [h, w, C], an array or a stream.
    skip: frames at the beginning that are not shown.
    own: by number, frames that are shown instead, [H, W, 3] uint8; where: only these of their pixels, [H, W] bool.
    """

    latents: Iterable[np.ndarray]
    skip: int = 0
    own: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    where: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of the solver.

    frames: of the video that the model sees.
    given: for `sample_latents`; ring: as it takes it.
    parts: from the latents that are made to what is shown.
    """

    frames: int
    given: Given | None = None
    parts: Callable[[np.ndarray], Iterable[Part]] = lambda latents: [Part(latents)]
    loop: bool = False


def render(params: dict, settings: AutoencoderSettings, parts: Iterable[Part]) -> Iterator[np.ndarray]:
    """By the autoencoder, the frames of the parts, one after the other, chunk by chunk, [F, H, W, 3] uint8."""
    for part in parts:
        number = 0
        for chunk in decode_stream(params, settings, part.latents):
            shown = np.array(chunk)
            for i in range(len(shown)):
                own = part.own.get(number + i)
                if own is not None:
                    shown[i] = own if part.where is None else np.where(part.where[..., None], own, shown[i])
            first = max(0, part.skip - number)
            number += len(shown)
            if first < len(shown):
                yield shown[first:]


def hold(coder: Coder, frames: int, spans: Mapping[int, np.ndarray]) -> Given:
    """Whole latent frames, [n, h, w, C] by the number of the first, held in a video of so many latent frames."""
    _, h, w, C = next(iter(spans.values())).shape
    latents, known = np.zeros((frames, h, w, C), np.float32), np.zeros(frames, bool)
    for start, span in spans.items():
        latents[start : start + len(span)] = span
        known[start : start + len(span)] = True
    grid = (frames, h // coder.patch[0], w // coder.patch[1])
    return Given(latents=latents, conditioning_mask=np.broadcast_to(known[:, None, None], grid))


def keyframes(coder: Coder, frames: int, pictures: Mapping[int, np.ndarray]) -> Task:
    """A video with these pictures, [H, W, 3] uint8, at the frames of these numbers.

    Raises: InputError if two lie in one latent, or one not in the video.
    """
    spans, own, holds = {}, {}, {}
    for number, picture in sorted(pictures.items()):
        place = -(-number // coder.stride)
        if not 0 <= number < frames:
            raise InputError(f"a picture at frame {number} of a video of frames 0 to {frames - 1}")
        if place in spans:
            raise InputError(
                f"pictures at frames {holds[place]} and {number}: both lie in one latent of the autoencoder, "
                f"which holds {coder.stride} frames"
            )
        holds[place] = number
        if number == 0:
            spans[place] = coder.encode(picture[None])
        else:
            later = coder.encode_later(np.repeat(picture[None], coder.stride, axis=0))
            spans[place], own[number] = later[-1:], coder.decode(later)[-1]
    given = hold(coder, (frames - 1) // coder.stride + 1, spans)
    return Task(frames, given, lambda latents: [Part(latents, own=own)])


def animate(generator, frames: int, pictures: Mapping[int, np.ndarray]) -> Task:
    """A video with these pictures, given in the way that the model knows: beside the noise, or held."""
    if generator.settings.transformer.condition_channels:
        return Task(frames, give_images(generator, list(pictures.values()), frames))
    return keyframes(coder_of(generator), frames, pictures)


def edit(coder: Coder, video: np.ndarray, strength: float) -> Task:
    """The video [F, H, W, 3] uint8, taken `strength` of the way to noise and back: at 1 nothing is left of it."""
    return Task(len(video), Given(latents=coder.encode(video), strength=strength))


def repaint(coder: Coder, video: np.ndarray, known: np.ndarray) -> Task:
    """The video [F, H, W, 3] uint8 with all made anew but the pixels that are known, [H, W] bool.

    A patch is given if all of its pixels are known. Known pixels come back as the autoencoder shows them.
    Raises: InputError if no patch is given, or every one.
    """
    latents = coder.encode(video)
    sides = [coder.settings.spatial_stride * p for p in coder.patch]
    H, W = known.shape
    whole = known.reshape(H // sides[0], sides[0], W // sides[1], sides[1]).all(axis=(1, 3))
    if whole.all() or not whole.any():
        what = "everything" if whole.all() else "nothing"
        raise InputError(f"{what} is known of the video in whole patches of {sides[1]}x{sides[0]} pixels")
    given = Given(latents=latents, conditioning_mask=np.broadcast_to(whole, (len(latents), *whole.shape)))
    own = dict(enumerate(coder.decode(latents)))
    return Task(len(video), given, lambda made: [Part(made, own=own, where=known)])


def on_canvas(coder: Coder, video: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The video in the middle of a larger picture, as near as patches allow, its edges drawn out over the rest.

    Returns: ([F, H, W, 3] uint8; which pixels are the video's, [H, W] bool).
    Raises: InputError if it does not fit, or fills it.
    """
    _, h, w, _ = video.shape
    if h > size[0] or w > size[1] or (h, w) == tuple(size):
        raise InputError(
            f"--size={size[1]}x{size[0]}: the video is {w}x{h}; around it there is room only in a larger one"
        )
    sides = [coder.settings.spatial_stride * p for p in coder.patch]
    start = [min(round((S - s) / 2 / p) * p, S - s) for S, s, p in zip(size, (h, w), sides, strict=True)]
    pads = [(a, S - s - a) for a, S, s in zip(start, size, (h, w), strict=True)]
    known = np.pad(np.ones((h, w), bool), pads)
    return np.pad(video, ((0, 0), *pads, (0, 0)), mode="edge"), known


def loop(coder: Coder, frames: int) -> Task:
    """A video without a beginning, of frames - 1 frames: its last frame comes before its first one.

    Its latents are a ring of later ones. What is decoded before the first frame is the end of the ring.
    """

    def parts(latents):
        loop = latents[1:]
        before = np.take(loop, np.arange(-2 * STILL, 0), axis=0, mode="wrap")
        return [Part(np.concatenate([before, loop]), skip=1 + coder.stride * (2 * STILL - 1))]

    return Task(frames, loop=True, parts=parts)


def connect(coder: Coder, frames: int, first: Footage, second: Footage, between: int, *, close=False) -> Task:
    """One video, so many latent frames that are made, and another one: each as context as far as the frames reach.

    Args:
      frames: that the model sees at once.
      between: latent frames.
      close: do not show the second video, as it is the first one: a loop.
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
    given = hold(coder, n, {0: coder.encode(tail), before + between: later})

    def parts(latents):
        made = latents[before : before + between]
        shown = [Part(itertools.chain(coder.encoded(ending(coder, first)), made))]
        return shown if close else [*shown, Part(coder.encoded(beginning(coder, second)))]

    return Task(1 + stride * (n - 1), given, parts)


def ending(coder: Coder, footage: Footage) -> Iterator[np.ndarray]:
    """Its frames, as many at its end as the autoencoder takes."""
    return footage.read((footage.frames - 1) % coder.stride)


def beginning(coder: Coder, footage: Footage) -> Iterator[np.ndarray]:
    """Its frames, as many at its beginning as the autoencoder takes."""
    return footage.read(0, (footage.frames - 1) // coder.stride * coder.stride + 1)
