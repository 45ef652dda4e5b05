"""The pages of the config keys: `python -m sora_jax.config.reference docs/reference`."""

import dataclasses
import pathlib
import sys

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

The keys of the models are on [config_models.md](config_models.md).

An unknown key, a value of another type, or one out of its range ends the command with one line and exit code 2.
"""


MODELS = """\
# Config keys of the models

<!-- Made by `python -m sora_jax.config.reference` from the declarations in sora_jax/config; do not edit. -->

The other keys, and how to set them, are on [config.md](config.md).
"""
MODEL_GROUPS = ("autoencoder", "text", "image", "transformer", "lora")  # have a page of their own


def pages() -> dict[str, str]:
    """The pages of docs/reference by the name of the file."""
    settings, run, models = Settings(), [INTRODUCTION], [MODELS]
    run += _table("config", settings)
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(group := getattr(settings, field.name)):
            where = f"config.{field.name}"
            parts = models if field.name in MODEL_GROUPS else run
            parts += [f"## {where}\n", f"{group.__doc__}\n", *_table(where, group)]
    return {"config.md": "\n".join(run), "config_models.md": "\n".join(models)}


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
    for file, text in pages().items():
        pathlib.Path(sys.argv[1], file).write_text(text)
