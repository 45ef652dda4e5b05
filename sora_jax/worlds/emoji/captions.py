"""Captions of the emoji world: one plain form, and others in which the same is said."""

import random

from sora_jax.worlds.emoji.subjects import Emoji

# Far from each other in colour, so that a background can be read from the pixels.
BACKGROUNDS = {
    "white": (250, 250, 250),
    "black": (16, 16, 16),
    "grey": (128, 128, 128),
    "red": (215, 45, 45),
    "orange": (245, 140, 40),
    "yellow": (250, 215, 60),
    "green": (50, 165, 75),
    "teal": (40, 165, 175),
    "blue": (45, 95, 215),
    "purple": (130, 70, 190),
    "pink": (245, 150, 190),
    "brown": (115, 75, 45),
}
VARIED = 3  # captions beside the plain one


def plain_caption(emoji: Emoji, background: str) -> str:
    """ "a waving hand with medium skin tone on a yellow background"."""
    return f"{_toned(emoji)} on {_article(background)} {background} background"


def captions(emoji: Emoji, background: str) -> list[str]:
    """The plain caption, then VARIED others, drawn by the emoji and the background."""
    draw = random.Random(f"{emoji.code} {background}")
    words = draw.sample(emoji.keywords, min(2, len(emoji.keywords)))
    bare = emoji.name.removeprefix("a ").removeprefix("an ")
    terse = ", ".join(filter(None, (bare, emoji.tone and f"{emoji.tone} skin tone", f"{background} background")))
    others = [
        ", ".join((plain_caption(emoji, background), *words)),
        terse,
        f"an animated emoji of {_toned(emoji)}, plain {background} background",
        f"{_toned(emoji)} in front of {_article(background)} {background} backdrop",
        f"{_article(background)} {background} background with {_toned(emoji)}",
        f"{terse}, {', '.join(words)}",
    ]
    return [plain_caption(emoji, background), *draw.sample(others, VARIED)]


def _toned(emoji):
    return f"{emoji.name} with {emoji.tone} skin tone" if emoji.tone else emoji.name


def _article(word):
    return "an" if word[0] in "aeiou" else "a"
