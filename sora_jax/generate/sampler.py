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
from sora_jax.generate import long_videos, tasks
from sora_jax.generate.conditioning_images import ConditioningFrames
from sora_jax.generate.generator import Generator
from sora_jax.generate.opened_inputs import OpenedInputs
from sora_jax.generate.pipeline import Noise, fill_batch, sample_latents
from sora_jax.generate.provenance import file_hash
from sora_jax.generate.rolling import RollingWindow, rolling_schedule, sample_rolling_latents


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


def short_videos(
    sampler: VideoSampler, task: tasks.Task, prompts: Sequence[str]
) -> Iterator[Iterator[np.ndarray]]:
    """The frames of a video for each prompt, each from one run of the solver."""
    generator, rows = sampler.generator, sampler.rows
    sampler.total = -(-len(prompts) // rows) * sampler.settings.steps
    for first in range(0, len(prompts), rows):
        group = prompts[first : first + rows]
        for latents in sampler.latents(group, task.conditioning, frames=task.frames, first=first, loop=task.loop):
            yield tasks.render(generator.autoencoder_params, generator.autoencoder, task.parts(latents))


def long_video_frames(
    sampler: VideoSampler,
    inputs: OpenedInputs,
    prompts: Sequence[str],
    paths: Sequence[pathlib.Path],
    metadata: Mapping,
    console: rich.console.Console,
) -> Iterator[Iterator[np.ndarray]]:
    """The frames of a long video for each prompt, made window after window.

    Args:
      paths: of the videos; finished windows are kept beside them until the video is written.
      metadata: all that the windows depend on beside the prompt and the given files.
    """
    plan = _WindowPlan(sampler, inputs)
    sampler.total = len(prompts) * plan.steps_before[-1]
    for number, prompt in enumerate(prompts):
        hashes = [file_hash(path) for path in inputs.files]
        request = {"prompt": prompt, "number": number, "files": hashes, **metadata}
        windows = long_videos.SavedWindows(paths[number], request, console)
        yield plan.frames(windows, number, prompt)
        windows.remove()


class _WindowPlan:
    """How a long video is cut into windows."""

    def __init__(self, sampler: VideoSampler, inputs: OpenedInputs):
        self.sampler, self.inputs = sampler, inputs.inputs
        self.coder, self.window = tasks.coder_of(sampler.generator), inputs.settings.frames
        self.new_frames = max(1, round(self.inputs.seconds * inputs.settings.fps))
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
        self.steps_before = list(itertools.accumulate(runs, initial=0))

    def frames(self, windows: long_videos.SavedWindows, number: int, prompt: str) -> Iterator[np.ndarray]:
        """The frames of video `number`, chunk by chunk."""
        story, sampler = self.inputs.story, self.sampler

        def sample_window(window, share, condition, unfinished):
            text = story[int(share * len(story))] if story else prompt
            # Windows of an earlier run count as done.
            sampler.done = number * self.steps_before[-1] + self.steps_before[window]
            rolling = RollingWindow(self.rolling, unfinished) if self.rolling else None
            options = {"frames": self.window, "first": number, "window": window, "rolling": rolling}
            return windows.get(window, lambda: sampler.latents([text], condition(), **options)[0])

        if self.inputs.backward:
            return long_videos.backward(self.coder, sample_window, self.window, self.new_frames, self.video)
        return long_videos.forward(
            self.coder, sample_window, self.window, self.new_frames, self.video, ahead=self.ahead
        )
