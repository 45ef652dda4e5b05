"""The page docs/reference/config.md: `python -m sora_jax.config.reference > docs/reference/config.md`."""

import dataclasses

from sora_jax.config.fields import declarations
from sora_jax.config.schema import Settings

INTRODUCTION = """\
# Config keys

<!-- Made by `python -m sora_jax.config.reference` from the declarations in sora_jax/config; do not edit. -->

`prepare`, `train` and `plan` read one config: the defaults below, changed by a file of `configs/`, then by flags.

    sora-jax train --config=configs/clips.py --config.train.steps=500 --config.data.batch=4 --workdir=runs/short

- `--config=FILE` is a Python file whose `get_config()` returns an ml_collections `ConfigDict`, or the
  `settings.json` of a workdir. `--config=FILE:TEXT` calls `get_config("TEXT")`.
- `--config.GROUP.KEY=VALUE` sets one key. Quote a tuple: `'--config.data.frames=(17, 1)'`.

An unknown key, a value of another type, or one out of its range ends the command with one line and exit code 2.
"""


def page() -> str:
    """The page as Markdown."""
    settings = Settings()
    parts = [INTRODUCTION, *_table("config", settings)]
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(group := getattr(settings, field.name)):
            where = f"config.{field.name}"
            parts += [f"## {where}\n", f"{group.__doc__}\n", *_table(where, group)]
    return "\n".join(parts)


def _table(where, group) -> list[str]:
    rows = []
    for name, declared in declarations(group).items():
        cells = (
            f"`--{where}.{name}`",
            _shown(getattr(group, name)),
            declared.unit,
            declared.range,
            declared.meaning,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return ["| key | default | unit | allowed | meaning |", "|---|---|---|---|---|", *rows, ""]


def _shown(value) -> str:
    text = value if isinstance(value, str) else repr(value)
    return f"`{text}`".replace("|", "\\|") if text else ""


if __name__ == "__main__":
    print(page(), end="")
