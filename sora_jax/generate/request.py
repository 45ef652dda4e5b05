"""A request to `sample`: prompts, settings, and a task with the files that it is given."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

from sora_jax.config.schema import SampleSettings, Settings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import as_path
from sora_jax.data.loader.conditioning_masks import conditioning_tasks
from sora_jax.data.media.options import Options

MAX_SECONDS = 600.0  # of a video; more is a mistake
SEEDS = 2**64
# (the inputs that each task needs, those that it may have)
TASKS = {
    "text": ((), ("seconds", "story", "rolling")),
    "image": ((), ("image", "last_image")),
    "keyframes": (("keyframes",), ()),
    "extend": (("videos", "seconds"), ("direction", "story", "rolling")),
    "loop": ((), ("videos", "seconds")),
    "connect": (("videos",), ("seconds",)),
    "edit": (("videos",), ("strength",)),
    "inpaint": (("videos", "mask"), ()),
    "outpaint": (("videos",), ()),
}
FLAGS = {"videos": "video", "keyframes": "keyframe", "last_image": "last-image"}
DIRECTIONS = ("forward", "backward")
STRENGTH = 0.6  # the default of an edit


@dataclasses.dataclass(frozen=True)
class TaskInputs:
    """A task and its inputs; the defaults are text to video.

    task: of TASKS; "": `image` if there is a picture, else `text`.
    image, last_image: pictures that the video begins and ends with.
    videos: given videos; keyframes: "SECONDS:FILE"; mask: a picture, white where an inpainting paints.
    direction: of DIRECTIONS, of an extension.
    seconds: length of the new part, in (0, 600]; None: as many frames as the model samples at once.
    strength: share of the steps that an edit runs, in [0, 1]; None: STRENGTH.
    story: prompts that take turns over a long video.
    rolling: finish the latent frames of a long video one after the other.
    watermark: a text on the video.
    """

    task: str = ""
    image: pathlib.Path | None = None
    last_image: pathlib.Path | None = None
    videos: tuple[pathlib.Path, ...] = ()
    keyframes: tuple[str, ...] = ()
    direction: str = ""
    seconds: float | None = None
    strength: float | None = None
    mask: pathlib.Path | None = None
    story: tuple[str, ...] = ()
    rolling: bool = False
    watermark: str = ""

    @property
    def name(self) -> str:
        return self.task or ("image" if self.image or self.last_image else "text")

    @property
    def long(self) -> bool:
        """Whether the video is sampled window after window."""
        return self.name == "extend" or (self.name == "text" and self.seconds is not None)

    @property
    def backward(self) -> bool:
        return self.direction == "backward"

    @property
    def edit_strength(self) -> float:
        """Share of the solver's steps that are run."""
        if self.name != "edit":
            return 1.0
        return STRENGTH if self.strength is None else self.strength

    def described(self) -> dict:
        """The task and the inputs that were given, for the metadata of the video; of files only the names."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = {key: value for key, value in given.items() if _is_given(value)} | {"task": self.name}
        if "keyframes" in given:
            keyframes = (text.partition(":") for text in self.keyframes)
            given["keyframes"] = tuple(f"{time}:{pathlib.Path(file).name}" for time, _, file in keyframes)
        return {
            key: [_named(item) for item in value] if isinstance(value, tuple) else _named(value)
            for key, value in given.items()
        }


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    """Settings of a single prompt's video; None: as the request says.

    seed: the video has this seed's first noise.
    """

    seed: int | None = None
    size: str | None = None
    frames: int | None = None
    negative_prompt: str | None = None


@dataclasses.dataclass(frozen=True)
class Refinement:
    """What a refiner makes of each video before it is written.

    checkpoint: workdir of a refiner, or a release of one.
    size: WIDTHxHEIGHT; fps: frames a second, a multiple of the video's; None: the video's.
    """

    checkpoint: pathlib.Path
    size: str
    fps: float | None = None

    @classmethod
    def read(cls, text: str, checkpoint: pathlib.Path) -> "Refinement":
        """ "128x128" or "128x128@32"."""
        size, at, rate = text.partition("@")
        try:
            fps = float(rate) if at else None
        except ValueError:
            raise InputError(
                f"--refine={text}: write WIDTHxHEIGHT or WIDTHxHEIGHT@FPS, such as 128x128@32"
            ) from None
        return cls(checkpoint, size, fps)


@dataclasses.dataclass(frozen=True)
class Request:
    """Videos to make: one for each prompt, all of one task.

    prompts: texts; a long video with a story has one.
    seed: of the noise, from 0 to 2^64 - 1; prompt number n has the seed's noise number first + n.
    negative_prompt: None: the checkpoint's own.
    changes: SampleSettings that differ from the checkpoint's own.
    step_cache_file: with the measured velocity change, written if it is absent; None: beside the checkpoint.
    own: settings of each prompt; (): none has any.
    media: how input files are decoded, and the limits that hold meanwhile.
    asked: the prompts, or the story, before they were expanded; () if they were not.
    lora: adapters to add, each PATH or PATH:STRENGTH; for one of two experts high=PATH or low=PATH.
    refinement: of the videos; None: they are written as they are sampled.
    """

    prompts: tuple[str, ...]
    inputs: TaskInputs = TaskInputs()
    seed: int = 0
    negative_prompt: str | None = None
    changes: Mapping = dataclasses.field(default_factory=dict)
    step_cache_file: pathlib.Path | None = None
    own: tuple[PromptSettings, ...] = ()
    first: int = 0
    media: Options = dataclasses.field(default_factory=Options)
    asked: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    refinement: Refinement | None = None

    def settings(self, own: SampleSettings) -> SampleSettings:
        """The checkpoint's own settings with the changes."""
        return dataclasses.replace(own, **self.changes)

    def parts(self) -> list["Request"]:
        """Requests whose prompts have no settings of their own; together they have the prompts in their order."""
        if not any(own != PromptSettings() for own in self.own):
            return [dataclasses.replace(self, own=())]
        parts = []
        for n, own in enumerate(self.own):
            begins = own.seed is not None or not parts or own != self.own[n - 1]
            if begins:
                parts.append([])
            parts[-1].append(n)
        return [self._part(numbers, self.own[numbers[0]]) for numbers in parts]

    def _part(self, numbers, own):
        keys = ("size", "frames", "negative_prompt")
        changes = {key: value for key in keys if (value := getattr(own, key)) is not None}
        return dataclasses.replace(
            self,
            prompts=tuple(self.prompts[n] for n in numbers),
            seed=self.seed if own.seed is None else own.seed,
            first=numbers[0] if own.seed is None else 0,
            negative_prompt=self.negative_prompt if own.negative_prompt is None else own.negative_prompt,
            changes={**self.changes, **changes},
            own=(),
            asked=tuple(self.asked[n] for n in numbers) if self.asked else (),
        )


def _is_given(value) -> bool:
    return value not in (None, "", ()) and value is not False  # a strength of 0 is given


def _named(value):
    return pathlib.PurePath(value).name if isinstance(value, os.PathLike) else value


def check_request(request: Request):
    """Raise InputError for a seed out of range, and as `check_inputs` does."""
    for seed in (request.seed, *(own.seed for own in request.own if own.seed is not None)):
        if not 0 <= seed < SEEDS:
            raise InputError(f"--seed={seed}: must be from 0 to {SEEDS - 1}")
    check_inputs(request.inputs)


def check_inputs(inputs: TaskInputs):
    """Raise InputError for an unknown task, and for inputs that are missing, not the task's, or out of range."""
    name = inputs.name
    if name not in TASKS:
        raise InputError(f"--task={name}: {did_you_mean(name, TASKS)}")
    needed, optional = TASKS[name]
    for field in dataclasses.fields(TaskInputs):
        key, flag = field.name, FLAGS.get(field.name, field.name)
        given = _is_given(getattr(inputs, key))
        if key in needed and not given:
            raise InputError(f"--{flag}: is needed for --task={name}")
        if given and key not in (*needed, *optional, "task", "watermark"):
            others = ", ".join(task for task, keys in TASKS.items() if key in keys[0] + keys[1])
            raise InputError(f"--{flag}: --task={name} takes none; it is for {others}")
    if name == "image" and not (inputs.image or inputs.last_image):
        raise InputError("--image: is needed for --task=image, or --last-image")
    for flag in ("story", "rolling"):
        if getattr(inputs, flag) and not inputs.long:
            raise InputError(f"--{flag}: is for a long video; name its length, --seconds")
    if inputs.rolling and inputs.backward:
        raise InputError("--rolling: goes forward; leave it out, or --direction=backward")
    _check_values(inputs)


def _check_values(inputs):
    count = 2 if inputs.name == "connect" else 1
    if inputs.videos and len(inputs.videos) != count:
        raise InputError(f"--video: {len(inputs.videos)} are given, but --task={inputs.name} takes {count}")
    if inputs.seconds is not None and not 0 < inputs.seconds <= MAX_SECONDS:
        raise InputError(f"--seconds={inputs.seconds:g}: must be above 0 and at most {MAX_SECONDS:g}")
    if inputs.strength is not None and not 0 <= inputs.strength <= 1:
        raise InputError(f"--strength={inputs.strength:g}: must be from 0, the video itself, to 1, another one")
    if inputs.direction and inputs.direction not in DIRECTIONS:
        raise InputError(f"--direction={inputs.direction}: {did_you_mean(inputs.direction, DIRECTIONS)}")


def read_keyframe(text: str, fps: float) -> tuple[int, pathlib.Path]:
    """ "1.5:cat.png" -> (number of the frame at 1.5 seconds, the file)."""
    time, colon, name = text.partition(":")
    try:
        number = round(float(time) * fps)
    except (ValueError, OverflowError):
        number = -1
    if not colon or not name or number < 0:
        raise InputError(f"--keyframe={text}: is not SECONDS:FILE, such as 1.5:cat.png")
    return number, as_path(name)


def untrained_note(inputs: TaskInputs, settings: Settings) -> str:
    """What to print of a task that the model was not trained for; "" if it was, or need not be."""
    name = inputs.name
    if settings.transformer.condition_channels and name == "image":
        return ""
    if name == "image" and inputs.last_image:
        useful = ("first_last" if inputs.image else "last_frame",)
    else:
        useful = {
            "image": ("first_frame", "prefix", "first_last"),
            "keyframes": ("random_frames",),
            "extend": ("suffix" if inputs.backward else "prefix", "prefix_suffix"),
            "text": ("prefix", "prefix_suffix") if inputs.long else (),
            "loop": ("prefix_suffix",) if inputs.videos else (),
            "connect": ("prefix_suffix",),
            "inpaint": ("inpaint",),
            "outpaint": ("outpaint",),
        }.get(name, ())
    trained = conditioning_tasks(settings.masks)
    if inputs.rolling and not settings.masks.forcing:
        return (
            "--rolling: this model was not trained on frames with times of their own (config.masks.forcing is 0)"
        )
    if not useful or set(useful) & set(trained):
        return ""
    return (
        f"--task={name}: this model was not trained for it (config.masks.{useful[0]} is 0); "
        f"it was trained for {', '.join(trained)}"
    )
