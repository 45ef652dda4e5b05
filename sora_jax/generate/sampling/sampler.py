"""The frames of every video of a request, from one run of the solver or from window after window."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console

from sora_jax.config.schema import SampleSettings
from sora_jax.core.mesh import num_shards
from sora_jax.generate import tasks
from sora_jax.generate.generator import Generator
from sora_jax.generate.inputs.conditioning_images import ConditioningFrames
from sora_jax.generate.inputs.opened_inputs import OpenedInputs
from sora_jax.generate.sampling import long_videos
from sora_jax.generate.sampling.batches import Batches
from sora_jax.generate.sampling.clips import Noise
from sora_jax.generate.sampling.pipeline import fill_batch, sample_latents
from sora_jax.generate.sampling.rolling import RollingWindow, rolling_schedule, sample_rolling_latents


class VideoSampler:
    """Samples latents for some prompts at a time, and reports its progress.

    Args:
      on_progress: called after each step of the solver with the steps that are done, and their number in all.
    rows: videos that the mesh samples at a time, at most.
    """

    def __init__(
        self,
        generator: Generator,
        settings: SampleSettings,
        *,
        seed: int,
        negative_prompt: str = "",
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        self.generator, self.settings, self.seed = generator, settings, seed
        self.negative_prompt, self._on_progress = negative_prompt, on_progress
        self.rows = num_shards("batch", jax.sharding.get_mesh().shape)
        self.done = self.total = 0

    def latents(
        self,
        prompts: Sequence[str],
        conditioning: ConditioningFrames | None,
        *,
        frames: int,
        first: int = 0,
        window: int = 0,
        loop: bool = False,
        rolling: RollingWindow | None = None,
    ) -> np.ndarray:
        """Latents of a video for each prompt, [B, f, h, w, C].

        Args:
          frames: length of the video; first, window: which noise, see `Noise`.
          rolling: see `sample_rolling_latents`.
        """

        def advance(time, velocity):
            self.done += 1
            self._on_progress(self.done, self.total)

        batch = fill_batch(prompts, self.settings.guidance)
        settings, noise = dataclasses.replace(self.settings, frames=frames), Noise(self.seed, first, window)
        shared: dict[str, Any] = {
            "negative_prompt": self.negative_prompt,
            "conditioning": conditioning,
            "on_step": advance,
        }
        if rolling:
            latents = sample_rolling_latents(self.generator, batch, settings, noise, rolling, **shared)
        else:
            latents = sample_latents(self.generator, batch, settings, noise, loop=loop, **shared)
        return latents[: len(prompts)]


class ShortVideos:
    """The frames of videos of one task, each from one run of the solver.

    Args:
      numbers: of the videos' clips in `batches`.
    """

    def __init__(self, batches: Batches, numbers: Sequence[int], task: tasks.Task, generator: Generator):
        self._batches, self._numbers, self._task, self._generator = batches, numbers, task, generator

    def frames(self, number: int) -> Iterator[np.ndarray]:
        """The frames of video `number`, chunk by chunk, [F, H, W, 3] uint8; samples its run if need be."""
        parts = self._task.parts(self._batches.latents(self._numbers[number]))
        return tasks.render(self._generator.autoencoder_params, self._generator.autoencoder, parts)

    def finish(self, number: int):
        """Called when video `number` is written."""
        self._batches.free(self._numbers[number])


class LongVideos:
    """The frames of a long video for each prompt, made window after window.

    Args:
      paths: of the videos; finished windows are kept beside them until the video is on disk.
      metadata: all that the windows depend on beside the prompt.
    total: steps of the solver for all videos.
    """

    def __init__(
        self,
        sampler: VideoSampler,
        inputs: OpenedInputs,
        prompts: Sequence[str],
        paths: Sequence[pathlib.Path],
        metadata: Mapping,
        *,
        first: int = 0,
        console: rich.console.Console,
    ):
        self.sampler, self.inputs, self.prompts, self.first = sampler, inputs.inputs, prompts, first
        self._paths, self._metadata, self._console = paths, metadata, console
        self._windows: dict[int, long_videos.SavedWindows] = {}
        self.coder, self.window = tasks.coder_of(sampler.generator), inputs.settings.frames
        self.new_frames = new_frames(inputs)
        self.video = inputs.videos[0] if inputs.videos else None
        stride, n = self.coder.stride, (self.window - 1) // self.coder.stride + 1
        steps, self.rolling, self.ahead = inputs.settings.steps, None, 0
        if self.inputs.rolling:
            self.rolling = rolling_schedule(n, long_videos.context_frames(n), steps)
            self.ahead = self.rolling.ahead
        count = long_videos.count(
            stride, self.window, self.new_frames, self.video, backward=self.inputs.backward, ahead=self.ahead
        )
        runs = [steps] * count
        if self.rolling:
            given = long_videos.given_latents(stride, self.window, self.video)
            runs = [len(self.rolling.step_table(n, given, 0)) - 1] + [self.rolling.lag] * (count - 1)
        self._steps_before = list(itertools.accumulate(runs, initial=0))
        self.total = sampler.total = len(prompts) * self._steps_before[-1]

    def frames(self, number: int) -> Iterator[np.ndarray]:
        """The frames of video `number`, chunk by chunk, [F, H, W, 3] uint8."""
        story, sampler, prompt = self.inputs.story, self.sampler, self.prompts[number]
        if number not in self._windows:
            request = {"prompt": prompt, "number": self.first + number, **self._metadata}
            self._windows[number] = long_videos.SavedWindows(self._paths[number], request, self._console)

        def sample_window(window, share, condition, unfinished):
            text = story[int(share * len(story))] if story else prompt
            # Windows of an earlier run count as done.
            sampler.done = number * self._steps_before[-1] + self._steps_before[window]
            rolling = RollingWindow(self.rolling, unfinished) if self.rolling else None
            noise = {"first": self.first + number, "window": window}
            return self._windows[number].get(
                window,
                lambda: sampler.latents([text], condition(), frames=self.window, rolling=rolling, **noise)[0],
            )

        if self.inputs.backward:
            return long_videos.backward(self.coder, sample_window, self.window, self.new_frames, self.video)
        return long_videos.forward(
            self.coder, sample_window, self.window, self.new_frames, self.video, ahead=self.ahead
        )

    def finish(self, number: int):
        """Called when video `number` is written."""
        self._windows.pop(number).remove()


def new_frames(inputs: OpenedInputs) -> int:
    """How many frames of a long video are new."""
    return max(1, round(inputs.inputs.seconds * inputs.settings.fps))
