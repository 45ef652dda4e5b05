"""A video that is shown while it is made: windows without an end, a few chunks ahead of their reader."""

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np

from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.generate.generator import Generator
from sora_jax.generate.sampling.long_videos import context_frames
from sora_jax.generate.sampling.pipeline import check_prompts
from sora_jax.generate.sampling.sampler import VideoSampler
from sora_jax.generate.tasks import coder_of, condition_on
from sora_jax.models.autoencoder.streaming import decode_more

WAIT = 0.1  # seconds between two looks whether the other side has left


class _Stopped(Exception):
    """The reader has left."""


class VideoStream:
    """The frames of an endless video, chunk by chunk, [F, H, W, 3] uint8.

    A context manager. Sampling and decoding run in a thread of their own while the reader encodes or shows what is
    there. Leaving the block ends the sampler within a step.

    Args:
      settings: of the samples; `frames` is the length of a window.
      ahead: chunks that wait for the reader at most; then the sampler waits.
    Raises: InputError for a prompt that can't be used. An error of the thread is raised to the reader.
    """

    def __init__(
        self, generator: Generator, settings: SampleSettings, prompt: str, *, seed: int = 0, ahead: int = 8
    ):
        self._generator, self._settings, self._seed = generator, settings, seed
        self.prompt = prompt
        self._chunks: queue.Queue[np.ndarray | Exception] = queue.Queue(maxsize=ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._make, args=(jax.sharding.get_mesh(),), daemon=True)

    @property
    def prompt(self) -> str:
        """What the next window shows; may be set at any time."""
        return self._prompt

    @prompt.setter
    def prompt(self, prompt: str):
        check_prompts([prompt])
        self._prompt = prompt

    def __enter__(self) -> "VideoStream":
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[np.ndarray]:
        while not self._stop.is_set():
            try:
                item = self._chunks.get(timeout=WAIT)
            except queue.Empty:
                continue
            if isinstance(item, Exception):
                raise item
            yield item

    def _make(self, mesh: jax.sharding.Mesh):
        """Fill the queue until the reader leaves."""

        def check(done: int, total: int):
            if self._stop.is_set():
                raise _Stopped

        with contextlib.suppress(_Stopped), jax.set_mesh(mesh):
            try:
                sampler = VideoSampler(
                    self._generator,
                    self._settings,
                    seed=self._seed,
                    negative_prompt=self._settings.negative_prompt,
                    on_progress=check,
                )
                for chunk in window_chunks(sampler, lambda: self.prompt):
                    self._put(chunk)
            except _Stopped:
                raise
            except Exception as error:
                self._put(error)

    def _put(self, item: np.ndarray | Exception):
        while not self._stop.is_set():
            try:
                return self._chunks.put(item, timeout=WAIT)
            except queue.Full:
                continue
        raise _Stopped


def window_chunks(sampler: VideoSampler, prompt: Callable[[], str]) -> Iterator[np.ndarray]:
    """The frames of window after window, [F, H, W, 3] uint8, a latent frame at a time by one decoder.

    Each window is given the last latents of the one before as they are. Only the frame before them is encoded
    anew: the first latent of a video holds one frame, and the others `stride`.

    Args:
      prompt: called for each window.
    """
    coder, window = coder_of(sampler.generator), sampler.settings.frames
    n = (window - 1) // coder.stride + 1
    context = context_frames(n)
    if n <= context:
        raise InputError(f"--frames={window}: a window of a stream is {coder.stride + 1} frames or more")
    conditioning, cache = None, None
    for number in itertools.count():
        latents = sampler.latents([prompt()], conditioning, frames=window, window=number)[0]
        frames = []
        for latent in latents if conditioning is None else latents[context:]:
            chunk, cache = decode_more(coder.params, coder.settings, latent[None], cache)
            frames = [*frames, *chunk]
            yield chunk
        kept = context - 1
        before = frames[-1 - kept * coder.stride]
        prefix = np.concatenate([coder.encode(before[None]), latents[n - kept :]])
        conditioning = condition_on(coder, n, {0: prefix})
