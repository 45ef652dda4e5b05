"""What the page shows of the model: tasks, their inputs, and settings with their defaults."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from sora_jax.config.fields import declarations
from sora_jax.config.schema import SampleSettings
from sora_jax.generate.request import DIRECTIONS, STRENGTH, TASKS
from sora_jax.serve.job_queue import Model
from sora_jax.serve.uploads import Limits

KEYFRAMES = 3  # fields of the form
# Task -> (label, explanation).
SHOWN = {
    "text": ("Text", "From words alone. One frame is a picture; seconds make it as long as you like."),
    "image": ("Animate", "A video that begins with a picture, ends with one, or both."),
    "keyframes": ("Keyframes", "A video that shows these pictures at these times."),
    "extend": ("Extend", "What comes after a video, or before it."),
    "loop": ("Loop", "A video that repeats without a seam; or a link from the end of yours to its beginning."),
    "connect": ("Connect", "Two videos, and what lies between them."),
    "edit": ("Edit", "A variation of your video: the higher the strength, the less of it is left."),
    "inpaint": ("Inpaint", "White parts of the mask are made anew; the mask has the video's own size."),
    "outpaint": ("Outpaint", "Your video in the middle of a larger picture: choose its size in the settings."),
}
# Names in TaskInputs -> those of the fields of the API.
FIELDS = {"image": ["input_reference"], "videos": ["video"], "keyframes": ["keyframe"]}
_HIDDEN = ("dtype", "negative_prompt")


def page_data(model: Model, limits: Limits, examples: Sequence[str]) -> dict[str, Any]:
    """All that the page has to know, as JSON."""
    return {
        "model": model.name,
        "examples": list(examples),
        "max_bytes": limits.bytes,
        "tasks": [
            {"name": name, "label": label, "about": about, "fields": _fields(name)}
            for name, (label, about) in SHOWN.items()
        ],
        "directions": list(DIRECTIONS),
        "strength": STRENGTH,
        "keyframes": KEYFRAMES,
        "negative_prompt": model.defaults.negative_prompt,
        "settings": _settings(model),
    }


def _fields(task: str) -> list[str]:
    names = [field for names in TASKS[task] for name in names for field in FIELDS.get(name, [name])]
    return [*names, "second_video"] if task == "connect" else names


def _settings(model: Model) -> list[dict]:
    hidden = _HIDDEN if model.has_low_noise else (*_HIDDEN, "guidance_low")
    kinds = {field.name: field.type for field in dataclasses.fields(SampleSettings)}
    return [
        {
            "name": name,
            "about": declared.meaning,
            "unit": declared.unit,
            "choices": list(declared.choices),
            "number": kinds[name] in (int, float),
            "value": getattr(model.defaults, name),
        }
        for name, declared in declarations(SampleSettings).items()
        if name not in hidden
    ]
