"""Videos longer than the model sees at once: window after window, each given the end (or beginning) of the others.

Finished windows are kept on disk as latents. So memory does not grow, and an interrupted command goes on.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import rich.console

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.core.storage import atomic_write, local_file, remove_folder
from sora_jax.generate.inputs.conditioning_images import ConditioningFrames
from sora_jax.generate.inputs.input_video import InputVideo
from sora_jax.generate.tasks import Coder, condition_on, first_frames, last_frames
from sora_jax.models.autoencoder.streaming import decode_more, decode_stream

CONTEXT = 1 / 3  # share of a window's latent frames that the next one is given

# (number of the window, share of the video at which it begins, a function that makes its conditioning, unfinished
# latents after that) -> its latents
SampleWindow = Callable[[int, float, Callable[[], ConditioningFrames | None], np.ndarray], np.ndarray]


class SavedWindows:
    """The finished windows of a video, in a folder beside it until the video is complete.

    Args:
      out: the video's file.
      request: all that the windows depend on; those of another request are deleted.
    """

    def __init__(self, out: pathlib.Path, request: Mapping, console: rich.console.Console):
        self.folder = out.with_name(f"{out.name}.windows")
        note, wanted = self.folder / "request.json", json.dumps(request, indent=1, sort_keys=True)
        saved = len(list(self.folder.glob("*.npy")))
        same = note.is_file() and note.read_text() == wanted
        if saved:
            fate = "going on after them" if same else "of another request, deleted"
            told = f"note: {self.folder}: {saved} finished windows, {fate}"
            console.print(told)

        def prepare():
            if not same:
                remove_folder(self.folder)
                with atomic_write(note) as temporary:
                    temporary.write_text(wanted)

        run_on_first_host(prepare)

    def get(self, number: int, sample: Callable[[], np.ndarray]) -> np.ndarray:
        """The latents of a window: read from disk, or sampled and saved, whole or not at all."""
        path = self.folder / f"{number:05}.npy"
        if not path.is_file():
            latents = sample()

            def write():
                with atomic_write(path) as temporary:
                    np.save(temporary, latents)

            run_on_first_host(write)
        return np.load(local_file(path))

    def remove(self):
        run_on_first_host(lambda: remove_folder(self.folder))


def context_frames(latents: int) -> int:
    """How many of a window's latent frames are given to the next window."""
    return max(1, round(latents * CONTEXT))


def given_latents(stride: int, window: int, video: InputVideo | None) -> int:
    """How many latent frames of the first window of `forward` are given."""
    context = context_frames((window - 1) // stride + 1)
    return 0 if video is None else min(context, (video.frames - 1) // stride + 1)


def count(
    stride: int, window: int, frames: int, video: InputVideo | None, *, backward: bool = False, ahead: int = 0
) -> int:
    """How many windows `forward` or `backward` samples; its arguments, and stride: frames in a latent frame."""
    n = (window - 1) // stride + 1
    context = context_frames(n)
    if backward:
        return -(-frames // (1 + stride * (n - min(context, video.frames // stride) - 1)))
    given = given_latents(stride, window, video)
    first = stride * (n - ahead - given) + (0 if given else 1 - stride)
    return 1 + max(0, -(-(frames - first) // (stride * (n - ahead - context))))


def forward(
    coder: Coder,
    sample: SampleWindow,
    window: int,
    frames: int,
    video: InputVideo | None = None,
    *,
    ahead: int = 0,
) -> Iterator[np.ndarray]:
    """A new video, or a given one and what follows it, chunk by chunk, [F, H, W, 3] uint8.

    Each window begins with the last frames before it, encoded as the beginning of a video. One decoder goes over
    all windows.

    Args:
      window: frames that the model sees at once; frames: new ones.
      ahead: latent frames that a window leaves unfinished, for the next one to go on with.
    """
    n = (window - 1) // coder.stride + 1
    context = context_frames(n)
    tail_frames, total = 1 + coder.stride * (context - 1), frames
    cache, tail = None, None
    if video is not None:
        for latent in coder.encoded(last_frames(coder, video)):
            chunk, cache = decode_more(coder.params, coder.settings, latent[None], cache)
            yield chunk
        given = 1 + coder.stride * (given_latents(coder.stride, window, video) - 1)
        tail = np.stack(list(video.read(video.frames - given)))
    number, unfinished = 0, np.zeros((0,), np.float32)
    while frames > 0:
        latents = sample(number, 1 - frames / total, functools.partial(_prefix, coder, n, tail), unfinished)
        latents, unfinished = latents[: n - ahead], latents[n - ahead :]
        if tail is not None:
            latents = latents[(len(tail) - 1) // coder.stride + 1 :]
        chunk, cache = decode_more(coder.params, coder.settings, latents, cache)
        tail = (chunk if tail is None else np.concatenate([tail, chunk]))[-tail_frames:]
        yield chunk[:frames]
        frames -= len(chunk)
        number += 1


def _prefix(coder, n, tail):
    return None if tail is None else condition_on(coder, n, {0: coder.encode(tail)})


def backward(
    coder: Coder, sample: SampleWindow, window: int, frames: int, video: InputVideo
) -> Iterator[np.ndarray]:
    """What comes before a given video, and the video, chunk by chunk, [F, H, W, 3] uint8.

    The last window is sampled first. All are decoded when the first one is there, each as a video of its own.
    """
    n = (window - 1) // coder.stride + 1
    context = min(context_frames(n), video.frames // coder.stride)
    head = np.stack(list(video.read(0, context * coder.stride)))
    number, left = 0, frames
    while left > 0:
        begins = max(0.0, (left - 1 - coder.stride * (n - context - 1)) / frames)
        latents = sample(number, begins, functools.partial(_suffix, coder, n, head), head[:0])
        chunk = coder.decode(latents[: n - context])
        head = np.concatenate([chunk, head])[: len(head)]
        left -= len(chunk)
        number += 1
    skip = -left
    for i in reversed(range(number)):
        latents = sample(i, 0.0, lambda: None, head[:0])[: n - context]  # read from disk
        for chunk in decode_stream(coder.params, coder.settings, latents):
            if skip < len(chunk):
                yield chunk[skip:]
            skip = max(0, skip - len(chunk))
    yield from decode_stream(coder.params, coder.settings, coder.encoded(first_frames(coder, video)))


def _suffix(coder, n, head):
    later = coder.encode_later(head)[-(len(head) // coder.stride) :]
    return condition_on(coder, n, {n - len(later): later})
