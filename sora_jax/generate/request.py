"""What is asked of `sample` beside prompts: the task, what is given for it, and whether these belong together."""

import dataclasses
import pathlib

from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.data.loader.conditioning_masks import conditioning_tasks

LONGEST = 600.0  # seconds; more is a mistake
# What each task must be given, and what it may be.
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


@dataclasses.dataclass(frozen=True)
class Request:
    """A task and what it is given; the defaults are text to video.

    task: of TASKS; "": `image` if there is a picture, else `text`.
    keyframes: "SECONDS:FILE"; seconds: of what is made, None: as the model makes them; strength: share of the
      solver's steps that an edit runs; story: prompts that take turns over a long video; rolling: a long video's
      frames are finished one after the other; watermark: a text.
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
        """Whether it is made window after window."""
        return self.name == "extend" or (self.name == "text" and self.seconds is not None)

    @property
    def backward(self) -> bool:
        return self.direction == "backward"

    def described(self) -> dict:
        """What of it was given, for the metadata of what is made."""
        given = {"task": self.name}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if _is_given(value) and field.name != "task":
                given[field.name] = [str(v) for v in value] if isinstance(value, tuple) else value
                if isinstance(value, pathlib.Path):
                    given[field.name] = str(value)
        return given


def _is_given(value) -> bool:
    return value not in (None, "", ()) and value is not False  # a strength of 0 is given


def check_request(request: Request):
    """Raise InputError if the task is none, or what is given is too little, too much or out of its range."""
    name = request.name
    if name not in TASKS:
        raise InputError(f"--task={name}: {did_you_mean(name, TASKS)}")
    needed, taken = TASKS[name]
    for field in dataclasses.fields(Request):
        key, flag = field.name, FLAGS.get(field.name, field.name)
        given = _is_given(getattr(request, key))
        if key in needed and not given:
            raise InputError(f"--{flag}: is needed for --task={name}")
        if given and key not in (*needed, *taken, "task", "watermark"):
            others = ", ".join(task for task, keys in TASKS.items() if key in keys[0] + keys[1])
            raise InputError(f"--{flag}: --task={name} takes none; it is for {others}")
    if name == "image" and not (request.image or request.last_image):
        raise InputError("--image: is needed for --task=image, or --last-image")
    for flag in ("story", "rolling"):
        if getattr(request, flag) and not request.long:
            raise InputError(f"--{flag}: is for a long video; name its length, --seconds")
    if request.rolling and request.backward:
        raise InputError("--rolling: goes forward; leave it out, or --direction=backward")
    wanted = 2 if name == "connect" else 1
    if request.videos and len(request.videos) != wanted:
        raise InputError(f"--video: {len(request.videos)} are given, but --task={name} takes {wanted}")
    if request.seconds is not None and not 0 < request.seconds <= LONGEST:
        raise InputError(f"--seconds={request.seconds:g}: must be above 0 and at most {LONGEST:g}")
    if request.strength is not None and not 0 <= request.strength <= 1:
        raise InputError(f"--strength={request.strength:g}: must be from 0, the video itself, to 1, another one")
    if request.direction and request.direction not in DIRECTIONS:
        raise InputError(f"--direction={request.direction}: {did_you_mean(request.direction, DIRECTIONS)}")


def read_keyframe(text: str, fps: float) -> tuple[int, pathlib.Path]:
    """ "1.5:cat.png" -> (number of the frame at 1.5 seconds, the file)."""
    time, colon, name = text.partition(":")
    try:
        number = round(float(time) * fps)
    except (ValueError, OverflowError):
        number = -1
    if not colon or not name or number < 0:
        raise InputError(f"--keyframe={text}: is not SECONDS:FILE, such as 1.5:cat.png")
    return number, pathlib.Path(name)


def untrained_note(request: Request, settings: Settings) -> str:
    """What to tell of a task that the model has not learned; "" if it has, or need not."""
    name = request.name
    if settings.transformer.condition_channels and name == "image":
        return ""
    kinds = {
        "image": ("first_last" if request.image else "last_frame",)
        if request.last_image
        else ("first_frame", "prefix", "first_last"),
        "keyframes": ("random_frames",),
        "extend": ("suffix", "prefix_suffix") if request.backward else ("prefix", "prefix_suffix"),
        "text": ("prefix", "prefix_suffix") if request.long else (),
        "loop": ("prefix_suffix",) if request.videos else (),
        "connect": ("prefix_suffix",),
        "inpaint": ("inpaint",),
        "outpaint": ("outpaint",),
    }.get(name, ())
    known = conditioning_tasks(settings.masks)
    if request.rolling and not settings.masks.forcing:
        return "--rolling: this model has not learned frames with a time each (config.masks.forcing is 0)"
    if not kinds or set(kinds) & set(known):
        return ""
    return (
        f"--task={name}: this model has not learned to be given that (config.masks.{kinds[0]} is 0); "
        f"it has learned {', '.join(known)}"
    )
