"""Videos longer than a model sees at once: window after window, each given the end (or beginning) of the others.

Of what is finished only latents are kept, on disk: memory does not grow, and what was interrupted goes on.
"""

import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import rich.console

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.core.storage import atomic_write
from sora_jax.generate.conditioning_images import Given
from sora_jax.generate.input_video import Footage
from sora_jax.generate.tasks import Coder, beginning, ending, hold
from sora_jax.models.autoencoder.streaming import decode_more, decode_stream

CONTEXT = 1 / 3  # of a window's latents that the next one is given

# (number of the window, share of the video at which it begins, what gives it what it is given, unfinished latents
# after that) -> its latents
Make = Callable[[int, float, Callable[[], Given | None], np.ndarray], np.ndarray]


class Windows:
    """The finished windows of a video, in a folder beside it until the video is there.

    Args:
      out: the video's file.
      made_of: all that the windows depend on; those of another wish are thrown away.
    """

    def __init__(self, out: pathlib.Path, made_of: Mapping, console: rich.console.Console):
        self.folder = out.with_name(f"{out.name}.windows")
        note, wanted = self.folder / "made_of.json", json.dumps(made_of, indent=1, sort_keys=True)
        there = len(list(self.folder.glob("*.npy")))
        same = note.is_file() and note.read_text() == wanted
        if there:
            what = "going on after them" if same else "of another wish, thrown away"
            console.print(
                f"note: {self.folder}: {there} windows are there, {what}", highlight=False, soft_wrap=True
            )

        def prepare():
            if not same:
                shutil.rmtree(self.folder, ignore_errors=True)
                with atomic_write(note) as temporary:
                    temporary.write_text(wanted)

        run_on_first_host(prepare)

    def get(self, number: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The latents of a window: as they were saved, or made and saved, whole or not at all."""
        path = self.folder / f"{number:05}.npy"
        if not path.is_file():
            latents = make()

            def write():
                with atomic_write(path) as temporary:
                    np.save(temporary, latents)

            run_on_first_host(write)
        return np.load(path)

    def remove(self):
        run_on_first_host(lambda: shutil.rmtree(self.folder))


def context_of(latents: int) -> int:
    """How many of a window's latent frames are given to the next window."""
    return max(1, round(latents * CONTEXT))


def known_of(stride: int, window: int, given: Footage | None) -> int:
    """How many latent frames of the first window of `forward` are given."""
    context = context_of((window - 1) // stride + 1)
    return 0 if given is None else min(context, (given.frames - 1) // stride + 1)


def count(
    stride: int, window: int, frames: int, given: Footage | None, *, backward: bool = False, ahead: int = 0
) -> int:
    """How many windows `forward` or `backward` makes; the arguments are theirs, stride: frames in a latent."""
    n = (window - 1) // stride + 1
    context = context_of(n)
    if backward:
        return -(-frames // (1 + stride * (n - min(context, given.frames // stride) - 1)))
    known = known_of(stride, window, given)
    first = stride * (n - ahead - known) + (0 if known else 1 - stride)
    return 1 + max(0, -(-(frames - first) // (stride * (n - ahead - context))))


def forward(
    coder: Coder, make: Make, window: int, frames: int, given: Footage | None = None, *, ahead: int = 0
) -> Iterator[np.ndarray]:
    """A video, or what follows a given one and itself before it, chunk by chunk, [F, H, W, 3] uint8.

    Each window is given the last frames, encoded anew to begin it as a video begins; the decoder goes on over all.

    Args:
      window: frames that the model sees at once; frames: new ones.
      ahead: latents that a window leaves unfinished, for the next one to go on with.
    """
    n = (window - 1) // coder.stride + 1
    context = context_of(n)
    tail_frames, total = 1 + coder.stride * (context - 1), frames
    past, tail = None, None
    if given is not None:
        for latent in coder.encoded(ending(coder, given)):
            shown, past = decode_more(coder.params, coder.settings, latent[None], past)
            yield shown
        known = 1 + coder.stride * (known_of(coder.stride, window, given) - 1)
        tail = np.stack(list(given.read(given.frames - known)))
    number, rest = 0, np.zeros((0,), np.float32)
    while frames > 0:
        latents = make(number, 1 - frames / total, functools.partial(_prefix, coder, n, tail), rest)
        latents, rest = latents[: n - ahead], latents[n - ahead :]
        if tail is not None:
            latents = latents[(len(tail) - 1) // coder.stride + 1 :]
        shown, past = decode_more(coder.params, coder.settings, latents, past)
        tail = (shown if tail is None else np.concatenate([tail, shown]))[-tail_frames:]
        yield shown[:frames]
        frames -= len(shown)
        number += 1


def _prefix(coder, n, tail):
    return None if tail is None else hold(coder, n, {0: coder.encode(tail)})


def backward(coder: Coder, make: Make, window: int, frames: int, given: Footage) -> Iterator[np.ndarray]:
    """What comes before a given video, and itself after it, chunk by chunk, [F, H, W, 3] uint8.

    The last window is made first; all are decoded when the first one is there, each as a video of its own.
    """
    n = (window - 1) // coder.stride + 1
    context = min(context_of(n), given.frames // coder.stride)
    head = np.stack(list(given.read(0, context * coder.stride)))
    number, left = 0, frames
    while left > 0:
        begins = max(0.0, (left - 1 - coder.stride * (n - context - 1)) / frames)
        latents = make(number, begins, functools.partial(_suffix, coder, n, head), head[:0])
        shown = coder.decode(latents[: n - context])
        head = np.concatenate([shown, head])[: len(head)]
        left -= len(shown)
        number += 1
    skip = -left
    for i in reversed(range(number)):
        latents = make(i, 0.0, lambda: None, head[:0])[: n - context]  # saved: it is not made again
        for shown in decode_stream(coder.params, coder.settings, latents):
            if skip < len(shown):
                yield shown[skip:]
            skip = max(0, skip - len(shown))
    yield from decode_stream(coder.params, coder.settings, coder.encoded(beginning(coder, given)))


def _suffix(coder, n, head):
    later = coder.encode_later(head)[-(len(head) // coder.stride) :]
    return hold(coder, n, {n - len(later): later})
