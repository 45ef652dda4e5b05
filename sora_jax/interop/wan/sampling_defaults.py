"""The sampling settings that each of Wan's models was published with, and what a scheduler's file says of them.

Source: the configurations of Wan 2.1 (arXiv 2503.20314) and 2.2, and the README of each model.
"""

import dataclasses
import pathlib

from sora_jax.config.schema import SampleSettings, TransformerSettings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import read_object

NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，"
    "残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，"
    "三条腿，背景人很多，倒着走"
)
SHAKE, CUT = "镜头晃动，", "镜头切换，"  # "camera shake", "shot change"


@dataclasses.dataclass(frozen=True)
class Published:
    """Sampling settings of one published model.

    guidance: of the only transformer, or of the expert for high noise; guidance_low: of the other expert.
    boundary: the time in [0, 1] where the second expert takes over; 0: there is one transformer.
    """

    size: str
    steps: int
    shift: float
    guidance: float
    guidance_low: float = 0.0
    frames: int = 81
    fps: float = 16.0
    boundary: float = 0.0
    negative_prompt: str = NEGATIVE_PROMPT


PUBLISHED = {
    "wan2.1-t2v-1.3b": Published("832x480", steps=50, shift=8.0, guidance=6.0),
    "wan2.1-t2v-14b": Published("1280x720", steps=50, shift=5.0, guidance=5.0),
    "wan2.1-i2v-14b-480p": Published("832x480", 40, 3.0, 5.0, negative_prompt=SHAKE + NEGATIVE_PROMPT),
    "wan2.1-i2v-14b-720p": Published("1280x720", 40, 5.0, 5.0, negative_prompt=SHAKE + NEGATIVE_PROMPT),
    "wan2.1-flf2v-14b": Published("1280x720", 50, 16.0, 5.0, negative_prompt=CUT + SHAKE + NEGATIVE_PROMPT),
    "wan2.2-t2v-a14b": Published("1280x720", 40, 12.0, 4.0, guidance_low=3.0, boundary=0.875),
    "wan2.2-i2v-a14b": Published("1280x720", 40, 5.0, 3.5, guidance_low=3.5, boundary=0.9),
    "wan2.2-ti2v-5b": Published("1280x704", 50, 5.0, 5.0, frames=121, fps=24.0),
}


def model_name(settings: TransformerSettings, *, experts: int, expand_timesteps: bool, where: str) -> str:
    """The key of PUBLISHED for a transformer of this form.

    Args:
      expand_timesteps: whether it takes a time for each patch, as Wan 2.2 TI2V does.
      where: the folder or file that it came from; I2V-14B has two sizes that differ in nothing but their name.
    """
    if expand_timesteps or settings.channels == 48:
        return "wan2.2-ti2v-5b"
    if experts == 2:
        return "wan2.2-i2v-a14b" if settings.condition_channels else "wan2.2-t2v-a14b"
    if settings.image_positions:
        return "wan2.1-flf2v-14b"
    if settings.condition_channels:
        return "wan2.1-i2v-14b-480p" if "480" in where else "wan2.1-i2v-14b-720p"
    return "wan2.1-t2v-1.3b" if settings.width <= TransformerSettings().width else "wan2.1-t2v-14b"


def sample_settings(published: Published, **changes) -> SampleSettings:
    """The published settings on Wan's own solver and time grid, but for the changes."""
    names = ("size", "frames", "fps", "steps", "shift", "guidance", "guidance_low", "negative_prompt")
    return SampleSettings(
        **{
            "solver": "unipc",
            "time_grid": "wan_unipc",
            **{name: getattr(published, name) for name in names},
            **changes,
        }
    )


# diffusers' scheduler classes -> our solver, its time grid, their key for the shift.
SCHEDULERS = {
    "UniPCMultistepScheduler": ("unipc", "diffusers_unipc", "flow_shift"),
    "DPMSolverMultistepScheduler": ("dpm", "diffusers_dpm", "flow_shift"),
    "FlowMatchEulerDiscreteScheduler": ("euler", "diffusers_euler", "shift"),
}


def scheduler_changes(path: pathlib.Path) -> tuple[dict, list[str]]:
    """Solver, time grid and shift from diffusers' scheduler_config.json; notes on what it does not say.

    Raises: InputError for a class of scheduler that has no counterpart here, or a shift that is no number above 0.
    """
    config = read_object(path)
    name = config.get("_class_name", "UniPCMultistepScheduler")
    if name not in SCHEDULERS:
        raise InputError(f"{path}: no solver here is like {name}; {did_you_mean(name, SCHEDULERS)}")
    solver, grid, key = SCHEDULERS[name]
    changes: dict = {"solver": solver, "time_grid": grid}
    shift = config.get(key)
    if shift is None:
        return changes, [f"{path}: has no {key}; the published shift is taken"]
    if isinstance(shift, bool) or not isinstance(shift, int | float) or shift <= 0:
        raise InputError(f"{path}: {key} is {shift!r}; a number above 0 is needed, such as 5.0")
    return changes | {"shift": float(shift)}, []
