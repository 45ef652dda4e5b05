"""Prompts of the shapes world, read and expanded by rules; a chat model expands other prompts."""

import random
import re

from sora_jax.core.errors import InputError
from sora_jax.worlds.shapes.captions import caption
from sora_jax.worlds.shapes.renderer import (
    BACKGROUNDS,
    CAMOUFLAGE,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    Scene,
    Thing,
)

_WORDS = {
    "size": {"small": "small|little|tiny", "large": "large|big|huge"},
    "speed": {"slow": "slow|slowly|gently", "fast": "fast|quick|quickly|rapidly"},
    "motion": {
        "left": "left|leftwards?",
        "right": "right|rightwards?",
        "up": "up|upwards?|top",
        "down": "down|downwards?|bottom",
        "still": "still|not move|rests?|resting|motionless",
    },
}
_NAMES = {"grey": "gr[ae]y", "sky": "sky"}
_SHAPE = rf"(?:{'|'.join(SHAPES)})s?"
# Removed before things are read: "a pale sky that brightens downwards" says nothing of their motion.
_BACKGROUND = re.compile(
    r"\b(?:(\w+) (?:background|backdrop)|(sky) gradient|pale (sky) that brightens downwards|(sky))\b"
)
_BETWEEN = re.compile(rf",?\s*\b(?:and|while)\b(?=(?:\s+\w+){{0,3}}\s+{_SHAPE}\b)")


def read_prompt(prompt: str) -> tuple[list[dict[str, str]], str | None]:
    """The attributes that a prompt names.

    Returns: ({"shape": ..., "colour": ..., and others that it names} of each thing, the background or None).
    Raises: InputError if it names no thing of the shapes world, or more than two.
    """
    text = prompt.lower()
    background = None
    if found := _BACKGROUND.search(text):
        word = next(group for group in found.groups() if group)
        background = _last(word, {name: _NAMES.get(name, name) for name in BACKGROUNDS})
        text = text[: found.start()] + text[found.end() :]
    things = []
    for clause in _BETWEEN.split(text):
        tables = {
            "shape": {name: f"{name}s?" for name in SHAPES},
            "colour": {name: name for name in COLOURS},
            **_WORDS,
        }
        # The last word counts: "from right to left".
        said = {field: _last(clause, table) for field, table in tables.items()}
        if said["shape"]:
            things.append({field: value for field, value in said.items() if value})
    if not 1 <= len(things) <= 2:
        raise InputError(
            f"{prompt[:60]!r}: only prompts of the shapes world are expanded by rules, one or two of "
            f"{', '.join(SHAPES)}; for others name the address of a chat model"
        )
    return things, background


def expand_by_rules(prompt: str) -> str:
    """A prompt as a long caption; attributes that it leaves open are drawn, with the prompt as the seed.

    Raises: InputError if it is not a prompt of the shapes world.
    """
    said, background = read_prompt(prompt)
    draw = random.Random(prompt)
    for _ in range(1000):
        where = background or draw.choice(list(BACKGROUNDS))
        things = tuple(_whole(thing, draw) for thing in said)
        hidden = any((thing.colour, where) in CAMOUFLAGE for thing in things)
        across = {bool(MOTIONS[thing.motion][1]) for thing in things if thing.motion != "still"}
        if not hidden and len(across) < 2 and len({thing.colour for thing in things}) == len(things):
            break
    else:  # the prompt itself asks for something that is never drawn
        things = tuple(_whole(thing, draw) for thing in said)
    scene = Scene(things, where, wording=draw.randrange(2**31))
    return caption(scene, "long", moving=True, bounced=[False] * len(things))


def _whole(said, draw) -> Thing:
    options = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "motion": MOTIONS, "speed": SPEEDS}
    chosen = {field: said.get(field) or draw.choice(list(names)) for field, names in options.items()}
    return Thing(**chosen | ({"speed": "none"} if chosen["motion"] == "still" else {}))


def _last(text, table):
    """The name whose word comes last in the text; None if there is none."""
    places = {name: [m.start() for m in re.finditer(rf"\b(?:{word})\b", text)] for name, word in table.items()}
    there = {name: found[-1] for name, found in places.items() if found}
    return max(there, key=there.get) if there else None
