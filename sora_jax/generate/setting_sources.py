"""Where the sampling settings of a request come from: the checkpoint, an adapter, or the request itself."""

import dataclasses
from collections.abc import Mapping

from sora_jax.config.schema import SampleSettings
from sora_jax.generate.request import Request
from sora_jax.interop.adapters import brought_settings

SHOWN = ("size", "frames", "fps", "steps", "solver", "time_grid", "shift", "guidance", "negative_prompt")
LONGEST = 40  # characters of a text that are shown


def with_adapter_settings(request: Request, own: SampleSettings) -> tuple[Request, list[str]]:
    """The request with the settings that its adapters bring, where it names none itself; and lines that say so.

    The request's negative prompt is then one of its settings, the checkpoint's own if it has none.
    """
    brought, notes = brought_settings(request.lora)
    asked = dict(request.changes)
    if request.negative_prompt is not None:
        asked["negative_prompt"] = request.negative_prompt
    changes = {**brought, **asked}
    settings = dataclasses.replace(own, **changes)
    lines = [_line("checkpoint", settings, [name for name in SHOWN if name not in changes])]
    lines += [_line("adapter", settings, [name for name in SHOWN if name in brought and name not in asked])]
    lines += [_line("request", settings, [name for name in SHOWN if name in asked])]
    request = dataclasses.replace(request, changes=changes, negative_prompt=settings.negative_prompt)
    return request, [*notes, *filter(None, lines)]


def _line(source: str, settings: SampleSettings, names) -> str:
    values: Mapping = dataclasses.asdict(settings)
    shown = [f"{name.replace('_', ' ')} {_short(values[name])}" for name in names]
    return f"settings of the {source}: {', '.join(shown)}" if shown else ""


def _short(value) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, str):
        return str(value)
    return value if 0 < len(value) <= LONGEST else f"{value[:LONGEST]}..." if value else "none"
