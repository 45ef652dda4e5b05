"""Where the sampling settings of a request come from: the checkpoint, an adapter, or the request itself."""

import dataclasses
from collections.abc import Mapping

from sora_jax.config.schema import SampleSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.generate.request import Request
from sora_jax.interop.adapters.weights import brought_settings

SHOWN = ("size", "frames", "fps", "steps", "solver", "time_grid", "shift", "guidance", "guidance_low")
SHOWN += ("negative_prompt",)
LONGEST = 40  # characters of a text that are shown


def with_adapter_settings(request: Request, trained: Settings) -> tuple[Request, list[str]]:
    """The request with the settings that its adapters bring, where it names none itself; and lines that say so.

    The request's negative prompt is then one of its settings, the checkpoint's own if it has none; so is the
    guidance of the expert for low noise, if the request names the other one's.

    Args:
      trained: settings of the model.
    Raises: InputError if the request names guidance_low, and the model is no pair of experts.
    """
    own, experts = trained.sample, 2 if trained.flow.time_min else 1
    brought, notes = brought_settings(request.lora)
    asked = dict(request.changes)
    if "guidance_low" in asked and experts == 1:
        raise InputError("--guidance-low: this model has one transformer, not two experts; leave it out")
    if experts == 2:
        brought, asked = _with_guidance_low(brought), _with_guidance_low(asked)
    else:
        brought.pop("guidance_low", None)
    if request.negative_prompt is not None:
        asked["negative_prompt"] = request.negative_prompt
    changes = {**brought, **asked}
    settings = dataclasses.replace(own, **changes)
    lines = [_line("checkpoint", settings, [name for name in SHOWN if name not in changes])]
    lines += [_line("adapter", settings, [name for name in SHOWN if name in brought and name not in asked])]
    lines += [_line("request", settings, [name for name in SHOWN if name in asked])]
    request = dataclasses.replace(request, changes=changes, negative_prompt=settings.negative_prompt)
    return request, [*notes, *filter(None, lines)]


def _with_guidance_low(changes: Mapping) -> dict:
    """Changes whose guidance is for both experts, if they name none for the second one."""
    return {"guidance_low": changes["guidance"], **changes} if "guidance" in changes else dict(changes)


def _line(source: str, settings: SampleSettings, names) -> str:
    values: Mapping = dataclasses.asdict(settings)
    shown = [
        f"{name.replace('_', ' ')} {_short(values[name])}"
        for name in names
        if name != "guidance_low" or values[name]
    ]
    return f"settings of the {source}: {', '.join(shown)}" if shown else ""


def _short(value) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, str):
        return str(value)
    return value if 0 < len(value) <= LONGEST else f"{value[:LONGEST]}..." if value else "none"
