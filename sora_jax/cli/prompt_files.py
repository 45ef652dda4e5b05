"""Files of prompts: one on each line, or JSON Lines with settings of each prompt's own."""

import json

import rich.console

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import as_path
from sora_jax.core.text_files import read_text

# Keys of a JSON line beside "prompt", and their types.
KEYS = {"seed": int, "size": str, "frames": int, "negative_prompt": str}


def read_lines(values, key: str, console: rich.console.Console) -> list[str]:
    """The prompts in the file that a flag names, one a line; prints how many empty lines were skipped.

    Raises: InputError if the file is absent, not text, or has no prompt.
    """
    lines = _lines(values, key, console)
    return [line for _, line in lines]


def read_prompts(values, key: str, console: rich.console.Console) -> list[tuple[str, dict]]:
    """The prompts in the file that a flag names, each with settings of its own.

    Args:
      key: of the flag. A file that ends in .jsonl has a JSON object on each line, with "prompt" and any of KEYS.
    Raises: InputError as `read_lines` does, and for a line that is no such object; names the line.
    """
    lines = _lines(values, key, console)
    if as_path(values[key].value).suffix != ".jsonl":
        return [(line, {}) for _, line in lines]
    return [_read_object(line, f"--{key}={values[key].value}: line {number}") for number, line in lines]


def _lines(values, key, console):
    """(number, text) of the lines that are not empty."""
    where = f"--{key}={values[key].value}"
    lines = read_text(as_path(values[key].value), where).split("\n")
    if lines[-1] == "":
        lines.pop()
    filled = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise InputError(f"{where}: no prompt in it; write one on each line")
    if empty := len(lines) - len(filled):
        console.print(f"note: {where}: {empty} empty lines are skipped")
    return filled


def _read_object(line, where):
    """(prompt, its own settings) of a line of JSON."""
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        raise InputError(f'{where}: an object such as {{"prompt": "a cat", "seed": 7}} is needed')
    own = {key: value for key, value in found.items() if key != "prompt"}
    for key, value in own.items():
        if key not in KEYS:
            raise InputError(f"{where}: no such key {key!r}, {did_you_mean(key, KEYS)}")
        if type(value) is not KEYS[key]:
            raise InputError(f"{where}: {key}: {value!r} is no {'whole number' if KEYS[key] is int else 'text'}")
    return found["prompt"], own
