"""The inputs of a request, opened, checked, and turned into the runs of the solver that its task takes."""

import dataclasses
import pathlib

import numpy as np
import rich.console

from sora_jax.config.schema import SampleSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.data.media.video import count_frames, probe
from sora_jax.generate import tasks
from sora_jax.generate.generator import Generator, latent_shape, video_size
from sora_jax.generate.inputs.conditioning_images import check_images
from sora_jax.generate.inputs.input_video import InputVideo, open_input_video, read_mask, read_picture
from sora_jax.generate.request import Request, read_keyframe

AS_LONG_AS_THE_VIDEO = ("edit", "inpaint", "outpaint")


class OpenedInputs:
    """The files of a request at the size and rate of the video; prints what is done to them.

    Args:
      request: if it does not name a length, a shorter given video makes the new one shorter.
      settings: of the samples.
      trained: settings of the model.
    settings: with the number of frames that the model samples at once.
    files: all that were opened.
    Raises: InputError for a file or a size that can't be used.
    """

    def __init__(
        self, request: Request, settings: SampleSettings, trained: Settings, console: rich.console.Console
    ):
        self.inputs, self._media, self._console = request.inputs, request.media, console
        inputs = request.inputs
        self.size, self.stride = video_size(settings), trained.autoencoder.temporal_stride
        self.takes_images = bool(trained.transformer.condition_channels)
        if self.takes_images:
            if inputs.name not in ("text", "image") or inputs.long:
                raise InputError(f"--task={inputs.name}: this model takes pictures beside the noise, --task=image")
            check_images(trained, inputs.image, inputs.last_image)
        if "frames" not in request.changes and inputs.name in AS_LONG_AS_THE_VIDEO:
            settings = self._as_long_as_the_video(settings)
        self.settings = settings
        latent_shape(trained, settings)
        self.videos = self._open_videos()
        self.pictures = self._read_pictures()
        self.mask = read_mask(inputs.mask, self.videos[0].video, self.size, self._media) if inputs.mask else None
        keyframes = [read_keyframe(text, 1.0)[1] for text in inputs.keyframes]
        named = (inputs.image, inputs.last_image, inputs.mask, *keyframes)
        self.files: list[pathlib.Path] = [*(video.path for video in self.videos), *filter(None, named)]

    def _as_long_as_the_video(self, settings):
        there = count_frames(probe(self.inputs.videos[0], self._media), settings.fps)
        frames = min(settings.frames, (there - 1) // self.stride * self.stride + 1)
        return dataclasses.replace(settings, frames=frames)

    def _open_videos(self) -> list[InputVideo]:
        name, frames, shortest = self.inputs.name, self.settings.frames, 1 + 2 * self.stride
        if frames < shortest and (self.inputs.long or name in ("connect", "loop")):
            raise InputError(f"--frames={frames}: --task={name} needs at least {shortest} at once")
        least = frames if name in AS_LONG_AS_THE_VIDEO else 1 + self.stride
        least = 1 if name == "extend" and not self.inputs.backward else least
        size = None if name == "outpaint" else self.size
        return [
            open_input_video(path, size, self.settings.fps, least, self._media, self._console)
            for path in self.inputs.videos
        ]

    def _read_pictures(self) -> dict[int, np.ndarray]:
        """Given pictures, by the number of their frame."""
        inputs, fps, last = self.inputs, self.settings.fps, self.settings.frames - 1
        places = [(0, inputs.image), (last, inputs.last_image)]
        for text in inputs.keyframes:
            places.append(read_keyframe(text, fps))
            if places[-1][0] > last:
                raise InputError(f"--keyframe={text}: the video ends at {last / fps:g} s")
        return {n: read_picture(path, self.size, self._media, self._console) for n, path in places if path}

    def task(self, generator: Generator) -> tasks.Task:
        """The run of the solver of a task that is not long."""
        name, frames = self.inputs.name, self.settings.frames
        if name == "text":
            return tasks.Task(frames)
        if name in ("image", "keyframes"):
            return tasks.animate(generator, frames, self.pictures)
        coder = tasks.coder_of(generator)
        if name == "loop" and not self.videos:
            return tasks.loop(coder, frames)
        if name in ("connect", "loop"):
            first, second = self.videos * (2 if name == "loop" else 1)
            return tasks.connect(coder, frames, first, second, self._frames_between(), close=name == "loop")
        video = np.stack(list(self.videos[0].read(0, frames)))
        if name == "edit":
            return tasks.edit(coder, video, self.inputs.edit_strength)
        if name == "inpaint":
            return tasks.inpaint(coder, video, self.mask)
        return tasks.inpaint(coder, *tasks.on_canvas(coder, video, self.size))

    def _frames_between(self) -> int:
        """Latent frames between two videos."""
        if self.inputs.seconds is None:
            return max(1, (self.settings.frames - 1) // self.stride // 2)
        return max(1, -(-round(self.inputs.seconds * self.settings.fps) // self.stride))
