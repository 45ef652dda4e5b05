"""A trained model: prompts, pictures and videos in, videos out."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, Unpack, overload

import jax

from sora_jax.api.inputs import InputFiles, InputVideo, Picture
from sora_jax.api.video import Video
from sora_jax.config.fields import declarations
from sora_jax.config.schema import MeshSettings, SampleSettings
from sora_jax.core.console import Console
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.mesh import make_mesh
from sora_jax.core.storage import as_path
from sora_jax.generate.generator import Generator, load_generator, read_run
from sora_jax.generate.request import PromptSettings, Request, TaskInputs
from sora_jax.generate.sample import sample
from sora_jax.generate.sampling.stream import VideoStream
from sora_jax.worlds.shipped import DEFAULT, model_folder


class Options(TypedDict, total=False):
    """What every method of a model that makes videos takes.

    seed: of the noise, from 0 to 2^64 - 1; prompt number n has the seed's noise number n. Default 0.
    size: WIDTHxHEIGHT.
    frames: number of frames.
    fps: frames a second.
    steps, solver, guidance and others: as config.sample has them (docs/reference/config.md); default: the model's.
    own: settings of each prompt's own.
    watermark: text to write into the lower right corner.
    out: an .mp4, or a folder for several prompts: videos are written while they are made, and not kept in memory.
    on_progress: called after each step with the steps that are done and their number in all; an exception that it
      raises ends the run.
    """

    seed: int
    size: str
    frames: int
    fps: float
    steps: int
    solver: str
    guidance: float
    guidance_low: float
    guidance_min: float
    guidance_max: float
    time_grid: str
    shift: float
    step_cache_threshold: float
    negative_prompt: str
    own: Sequence[PromptSettings]
    watermark: str
    out: str | os.PathLike
    on_progress: Callable[[int, int], None]


class SampleOptions(Options, total=False):
    """What `Model.sample` takes as well.

    seconds: length of a long video, made window by window; else it has as many frames as the model makes at once.
    story: further prompts for equal parts of a long video, after the first one.
    rolling: make a long video frame by frame.
    """

    seconds: float
    story: Sequence[str]
    rolling: bool


class Model:
    """A trained model; its weights are read when the first request has been checked.

    Args:
      checkpoint: workdir of a training run, one of its checkpoints, or a released model.
      lora: adapters, each PATH or PATH:STRENGTH.
      dtype: to compute in; "": as the checkpoint says.
      console: for notes and a progress bar.
    Raises: InputError if there is no such model.
    """

    def __init__(
        self,
        checkpoint: pathlib.Path,
        *,
        mesh: MeshSettings,
        lora: Sequence[str] = (),
        dtype: str = "",
        console: Console | None = None,
    ):
        self.checkpoint, self.mesh = checkpoint, mesh
        self._lora, self._dtype = tuple(lora), dtype
        self._console = console or Console(quiet=True)
        self._settings = read_run(checkpoint)[2]
        self._generator: Generator | None = None
        self._files = InputFiles()

    @property
    def settings(self) -> SampleSettings:
        """The settings that a video gets if the caller names no others."""
        return self._settings.sample

    @property
    def generator(self) -> Generator:
        """The weights, read on the first use."""
        if self._generator is None:
            with jax.set_mesh(make_mesh(self.mesh)):
                self._generator = load_generator(self.checkpoint, dtype=self._dtype or None, lora=self._lora)
        return self._generator

    @overload
    def sample(self, prompts: str, **options: Unpack[SampleOptions]) -> Video: ...  # type: ignore[overload-overlap]
    @overload
    def sample(self, prompts: Sequence[str], **options: Unpack[SampleOptions]) -> list[Video]: ...
    def sample(self, prompts, **options):
        """A video from a prompt, or a list of videos from many, which then share runs of the solver.

        A prompt's video depends on what shares its run by rounding alone (docs/notes/sampling_cost.md).
        """
        names = ("seconds", "story", "rolling")
        inputs = {name: options.pop(name) for name in names if name in options}
        if story := inputs.get("story"):
            inputs["story"] = (prompts, *story)
        made = self._make([prompts] if isinstance(prompts, str) else prompts, inputs, options)
        return made[0] if isinstance(prompts, str) else made

    def image_to_video(
        self,
        prompt: str,
        image: Picture | None = None,
        last_image: Picture | None = None,
        **options: Unpack[Options],
    ) -> Video:
        """A video that begins with a picture, ends with one, or both."""
        pictures = {"image": image, "last_image": last_image}
        given = {name: self._files.picture(one) for name, one in pictures.items() if one is not None}
        return self._make([prompt], {"task": "image", **given}, options)[0]

    def interpolate(self, prompt: str, pictures: Mapping[float, Picture], **options: Unpack[Options]) -> Video:
        """A video that shows pictures at the given seconds, {0.0: picture, 1.0: picture}."""
        given = tuple(f"{time}:{self._files.picture(one)}" for time, one in pictures.items())
        return self._make([prompt], {"task": "keyframes", "keyframes": given}, options)[0]

    def extend(
        self, prompt: str, video: InputVideo, seconds: float, *, backward=False, **options: Unpack[Options]
    ) -> Video:
        """A video with new seconds after it, or before it."""
        direction = "backward" if backward else ""
        inputs = {"task": "extend", "videos": self._videos(video), "seconds": seconds, "direction": direction}
        return self._make([prompt], inputs, options)[0]

    def loop(
        self,
        prompt: str,
        video: InputVideo | None = None,
        seconds: float | None = None,
        **options: Unpack[Options],
    ) -> Video:
        """A video that repeats without a seam: a new one, or a given one with a new end of so many seconds."""
        given = () if video is None else self._videos(video)
        return self._make([prompt], {"task": "loop", "videos": given, "seconds": seconds}, options)[0]

    def connect(
        self,
        prompt: str,
        first: InputVideo,
        second: InputVideo,
        seconds: float | None = None,
        **options: Unpack[Options],
    ) -> Video:
        """Two videos with new seconds between them."""
        inputs = {"task": "connect", "videos": self._videos(first, second), "seconds": seconds}
        return self._make([prompt], inputs, options)[0]

    def edit(
        self, prompt: str, video: InputVideo, strength: float | None = None, **options: Unpack[Options]
    ) -> Video:
        """A variation of a video; strength from 0, the video itself, to 1, another one."""
        inputs = {"task": "edit", "videos": self._videos(video), "strength": strength}
        return self._make([prompt], inputs, options)[0]

    def inpaint(self, prompt: str, video: InputVideo, mask: Picture, **options: Unpack[Options]) -> Video:
        """A video with the white area of a mask, as large as the video, made anew."""
        inputs = {"task": "inpaint", "videos": self._videos(video), "mask": self._files.picture(mask)}
        return self._make([prompt], inputs, options)[0]

    def outpaint(self, prompt: str, video: InputVideo, **options: Unpack[Options]) -> Video:
        """A video with new surroundings; the option `size` is that of the whole."""
        return self._make([prompt], {"task": "outpaint", "videos": self._videos(video)}, options)[0]

    def stream(self, prompt: str, *, seed: int = 0, **settings) -> VideoStream:
        """An endless video that is shown while it is made, a few frames at a time.

        A context manager whose iterator gives chunks of frames, [F, H, W, 3] uint8.
        Setting `video.prompt` changes what comes next. Leaving the block ends it.

        Args:
          settings: as config.sample has them; `frames` is the length of a window.
        """
        _check_known(settings, declarations(SampleSettings))
        with jax.set_mesh(make_mesh(self.mesh)):
            return VideoStream(self.generator, dataclasses.replace(self.settings, **settings), prompt, seed=seed)

    def generate(
        self,
        request: Request,
        out: str | os.PathLike | None = None,
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        expand: Callable[[list[str]], list[str]] | None = None,
    ) -> list[Video]:
        """The videos of a request; the other methods, and the command `sample`, make theirs with it.

        Raises: InputError for what can't be used, before the first step; IncompleteError if a video was not made.
        """
        made = sample(
            self.checkpoint,
            request,
            None if out is None else as_path(out),
            mesh=self.mesh,
            console=self._console,
            generator=self._generator,
            load=lambda: self.generator,
            expand=expand,
            on_progress=on_progress,
        )
        return [Video(one) for one in made]

    def _videos(self, *given: InputVideo) -> tuple[pathlib.Path, ...]:
        return tuple(self._files.video(one, self.settings.fps) for one in given)

    def _make(self, prompts: Sequence[str], inputs: Mapping, options: Mapping[str, Any]) -> list[Video]:
        _check_known(options, Options.__annotations__)
        settings = declarations(SampleSettings)
        request = Request(
            tuple(prompts),
            TaskInputs(**inputs, watermark=options.get("watermark", "")),
            options.get("seed", 0),
            options.get("negative_prompt"),
            {name: value for name, value in options.items() if name in settings},
            lora=self._lora,
            own=tuple(options.get("own", ())),
        )
        given = {"on_progress": options["on_progress"]} if "on_progress" in options else {}
        return self.generate(request, options.get("out"), **given)


def _check_known(options: Iterable[str], known: Iterable[str]):
    """Raise InputError for an option that there is not."""
    if unknown := set(options) - set(known):
        raise InputError(f"{min(unknown)}: no such option, {did_you_mean(min(unknown), known)}")


def load(
    model: str | os.PathLike = DEFAULT,
    *,
    lora: Sequence[str] = (),
    dtype: str = "",
    mesh: MeshSettings | None = None,
    console: Console | None = None,
) -> Model:
    """A model: that of a world by its name, "shapes" or "emoji", or any other by its path, also in a bucket.

    Args:
      lora: adapters, each PATH or PATH:STRENGTH.
      dtype: to compute in; "": as the checkpoint says.
      mesh: of devices; None: all of them, each with videos of its own.
      console: for notes and a progress bar; None: silent.
    Raises: InputError if there is no such model.
    """
    return Model(
        model_folder(str(model)), mesh=mesh or MeshSettings(data=-1), lora=lora, dtype=dtype, console=console
    )
