"""The page of the Python API: `python -m sora_jax.api.reference docs/reference`."""

import inspect
import pathlib
import re
import sys

from sora_jax import api

INTRODUCTION = """\
# Python

<!-- Made by `python -m sora_jax.api.reference` from the docstrings in sora_jax/api; do not edit. -->

The [guide](../guide/python.ipynb) shows these in use. `sora_jax.load`, `sora_jax.train` and `sora_jax.evaluate`
are those of `sora_jax.api`, where a type checker knows them. Mistakes raise `sora_jax.core.errors.InputError`.
"""


def page() -> str:
    """The text of docs/reference/python.md."""
    parts = [INTRODUCTION]
    for name in ("load", "Model", "Options", "SampleOptions", "Video", "train", "Training", "evaluate"):
        found = getattr(api, name)
        parts.append(f"## {name}\n\n{_about(name, found)}")
        if inspect.isclass(found):
            parts += [
                f"### {name}.{member}\n\n{_about(member, value)}"
                for member, value in vars(found).items()
                if not member.startswith("_") and callable(value) | isinstance(value, property) and _text(value)
            ]
    return "\n".join(parts)


def _about(name, found) -> str:
    """The signature, of what is called, and the docstring."""
    head = ""
    if inspect.isfunction(found):
        arguments = [_argument(one) for one in inspect.signature(found).parameters.values() if one.name != "self"]
        head = f"    {name}({', '.join(arguments)})\n\n"
    return f"{head}{_markdown(_text(found))}\n"


def _argument(parameter: inspect.Parameter) -> str:
    """An argument with its default; a function as a default is "..."."""
    stars = "**" if parameter.kind is inspect.Parameter.VAR_KEYWORD else ""
    default = "..." if callable(parameter.default) else repr(parameter.default)
    absent = parameter.default is inspect.Parameter.empty
    return f"{stars}{parameter.name}" + ("" if absent else f"={default}")


def _text(found) -> str:
    return inspect.getdoc(found) or ""


def _markdown(text: str) -> str:
    """A docstring as Markdown, each of its arguments or fields a line of a list."""
    lines: list[str] = []
    for line in text.splitlines():
        bare = line.strip()
        if lines and (item := re.fullmatch(r"(\w[\w, ]*): (.+)", bare)):
            plain = item[1] in ("Returns", "Raises")
            lines += ["", bare] if plain else [f"- `{item[1]}`: {item[2]}"]
        elif line.startswith("  ") and lines:
            lines[-1] += f" {bare}"
        elif bare != "Args:":
            lines.append(bare)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


if __name__ == "__main__":
    pathlib.Path(sys.argv[1], "python.md").write_text(page())
