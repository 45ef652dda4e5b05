"""The texts of `--help`, and two pages of the reference: `python -m sora_jax.cli.help docs/reference`."""

import dataclasses
import pathlib
import sys
import textwrap

from sora_jax.cli.commands import COMMANDS, GROUPS, subcommands
from sora_jax.cli.flags import Command, Flag
from sora_jax.config.fields import declarations
from sora_jax.config.schema import Settings

WIDTH = 100
CONFIG = Flag(
    "config", "Python file of a config, or the settings.json of a workdir; see docs/reference/config.md."
)

MODELS_IN_USE = ("convert", "sample", "refine", "serve", "evaluate")  # have a page of their own
OF_WORLDS = ("data shapes", "data emoji", "demo", "recipe shapes", "recipe shapes-ablations", "recipe emoji")
INTRODUCTION = """\
# Commands

<!-- Made by `python -m sora_jax.cli.help` from the declarations in sora_jax/cli; do not edit. -->

    sora-jax COMMAND [--flag=value ...]

`sora-jax --help` lists the commands, `sora-jax COMMAND --help` the flags of one that most people need, and
`sora-jax COMMAND --help-all` all of them and, for `prepare`, `train` and `plan`, every key of the config
([config.md](config.md)). `sora-jax --version` prints the version.

An error of input ends a command with exit code 2 and one line that says what is wrong and what to type instead.
Exit code 75 asks to run the same command again. Any other error keeps its traceback, and is a bug.

    $ sora-jax trian
    sora-jax trian: trian: no such command, did you mean 'train'?; `sora-jax --help` lists them
"""
MODELS = """\
# Commands that use a model

<!-- Made by `python -m sora_jax.cli.help` from the declarations in sora_jax/cli; do not edit. -->

The other commands are on [commands.md](commands.md).
"""
WORLDS = """\
# Commands of the worlds

<!-- Made by `python -m sora_jax.cli.help` from the declarations in sora_jax/cli; do not edit. -->

Data, recipes and demo of the models that the package trains itself. The other commands are on
[commands.md](commands.md).
"""


def overview(first: str = "") -> str:
    """The commands with their summaries; with a word, those of two words that begin with it."""
    width = max(map(len, COMMANDS))
    lines = [f"usage: sora-jax {first or 'COMMAND'} [--flag=value ...]"]
    if first:
        lines = [f"usage: sora-jax {first} COMMAND [--flag=value ...]", ""]
        lines += [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in subcommands(first)]
    else:
        for title, group in GROUPS.items():
            lines += ["", f"{title}:"]
            lines += [f"  {name:<{width}}  {command.summary}" for name, command in group.items()]
    return "\n".join([*lines, "", "`sora-jax COMMAND --help` shows the flags of a command."])


def help_text(name: str, *, everything: bool = False) -> str:
    """A command's summary, examples, flags, and keys of its config.

    Args:
      everything: also the advanced flags and all keys.
    """
    command = COMMANDS[name]
    lines = [f"usage: sora-jax {name} [--flag=value ...]", "", command.summary, ""]
    if command.about:
        lines += [textwrap.fill(command.about, WIDTH), ""]
    lines += [f"  sora-jax {name} {example}".rstrip() for example in command.examples]
    hidden = 0
    for title, group in _groups(command).items():
        shown = [flag for flag in group if everything or not flag.advanced]
        hidden += len(group) - len(shown)
        if shown:
            lines += ["", f"{title}:"]
        for flag in shown:
            lines += _entry(f"--{flag.name}", flag.meaning + _notes(flag))
    if command.config:
        lines += ["", "Keys of the config, with their defaults:"]
        for key, value, declared in config_keys():
            if not everything and key not in command.keys:
                hidden += 1
                continue
            notes = "; ".join(filter(None, (declared.unit, declared.range)))
            lines += _entry(f"--config.{key}={value}", declared.meaning + (f" ({notes})" if notes else ""))
    if hidden:
        lines += ["", f"{hidden} more are for special cases: `sora-jax {name} --help-all` shows them."]
    return "\n".join(lines)


def config_keys():
    """(key, default, declaration) of every key of the config."""
    settings = Settings()
    for name, declared in declarations(settings).items():
        yield name, getattr(settings, name), declared
    for field in dataclasses.fields(settings):
        group = getattr(settings, field.name)
        if dataclasses.is_dataclass(group):
            for name, declared in declarations(group).items():
                yield f"{field.name}.{name}", getattr(group, name), declared


def pages() -> dict[str, str]:
    """The pages of docs/reference by the name of the file."""
    parts = [INTRODUCTION, "| command | input -> output |", "|---|---|"]
    for name, command in COMMANDS.items():
        page = "commands_models.md" if name in MODELS_IN_USE else "commands_worlds.md" if name in OF_WORLDS else ""
        parts.append(f"| [`{name}`]({page}#{name.replace(' ', '-')}) | {command.summary} |")
    others = [name for name in COMMANDS if name not in (*MODELS_IN_USE, *OF_WORLDS)]
    return {
        "commands.md": "\n".join(parts + _sections(others)) + "\n",
        "commands_models.md": "\n".join([MODELS, *_sections(MODELS_IN_USE)]) + "\n",
        "commands_worlds.md": "\n".join([WORLDS, *_sections(OF_WORLDS)]) + "\n",
    }


def _sections(names) -> list[str]:
    parts = []
    for name in names:
        command = COMMANDS[name]
        parts += ["", f"## {name}", ""]
        parts += [f"    sora-jax {name} {example}".rstrip() for example in command.examples]
        parts += ["", f"{command.summary[0].upper()}{command.summary[1:]}. {command.about}".rstrip()]
        for title, group in _groups(command).items():
            parts += ["", f"| {title.lower()} | meaning | default |", "|---|---|---|"]
            parts += [f"| `--{flag.name}` | {flag.meaning} | {_default(flag)} |" for flag in group]
    return parts


def _groups(command: Command) -> dict:
    return dict(command.flags) | ({"Settings": (CONFIG,)} if command.config else {})


def _entry(left: str, text: str) -> list[str]:
    """A flag or key and its meaning, beside each other or on two lines."""
    indent = " " * 24
    wrapped = textwrap.wrap(text, WIDTH - len(indent))
    if len(left) > len(indent) - 4:
        return [f"  {left}", *(indent + line for line in wrapped)]
    return [f"  {left:<{len(indent) - 2}}{wrapped[0]}", *(indent + line for line in wrapped[1:])]


def _notes(flag: Flag) -> str:
    """What is to be said after the meaning of a flag."""
    if flag.example:
        return f" Required, for example {flag.example}."
    return f" Default: {flag.shown}." if flag.shown else ""


def _default(flag: Flag) -> str:
    if flag.example:
        return f"required, e.g. `{flag.example}`"
    return f"`{flag.shown}`" if flag.shown else ""


if __name__ == "__main__":
    for file, text in pages().items():
        pathlib.Path(sys.argv[1], file).write_text(text)
