"""What the emoji world knows of a prompt: the nearest emoji, skin tone and background."""

import difflib
import functools
import math
import re
from collections import Counter

from sora_jax.worlds.emoji.captions import BACKGROUNDS
from sora_jax.worlds.emoji.subjects import TONES, Emoji, all_emoji

KEYWORD_WEIGHT = 0.4  # of a word that is only among the keywords, relative to a word of the name
NEAREST = 3
_SETTING = re.compile(r"\b(?:(?:on|in front of|against) )?(?:an? )?(?:plain )?([\w-]+) (?:background|backdrop)\b")
_TONE = re.compile(r"\b(?:with )?(?:an? )?([\w-]+) skin(?: tone)?\b")
_EMPTY = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "with",
        "on",
        "in",
        "and",
        "or",
        "to",
        "at",
        "is",
        "animated",
        "emoji",
        "plain",
        "front",
        "background",
        "backdrop",
    ]
)


def remark(prompt: str) -> str:
    """One line on what a prompt names that the emoji world does not have, with the nearest; "" if it has all."""
    text, said = prompt.lower(), []
    for pattern, kind, known in ((_SETTING, "background", BACKGROUNDS), (_TONE, "skin tone", TONES.values())):
        found = pattern.search(text)
        if found and found[1] not in known:
            said.append(f"no {found[1]} {kind}, it has {', '.join(known)}")
        text = pattern.sub(" ", text)
    words = _words(text)
    if words and not any(set(_words(emoji.name)) <= set(words) for emoji in _subjects()):
        names = ", ".join(f'"{emoji.name}"' for emoji in nearest(text))
        said.append(f"no emoji of that name, the nearest are {names}")
    return f"{prompt[:60]!r}: this model knows {'; '.join(said)}" if said else ""


def nearest(text: str, count: int = NEAREST) -> list[Emoji]:
    """The emoji without tones whose names and keywords share the most with a text; rare words count more."""
    weights, known = _word_weights()
    words = {word for word in _words(text) if word not in _EMPTY}
    close = [
        match for word in words - set(weights) for match in difflib.get_close_matches(word, known, n=1, cutoff=0.8)
    ]
    words = (words & set(weights)) | set(close)

    def score(emoji):
        name = set(_words(emoji.name))
        keywords = {word for keyword in emoji.keywords for word in _words(keyword)} - name
        shared = sum(weights[w] for w in words & name) + KEYWORD_WEIGHT * sum(weights[w] for w in words & keywords)
        return shared - 0.01 * len(name)

    return sorted(_subjects(), key=score, reverse=True)[:count]


def _words(text):
    return [word for word in re.findall(r"[\w'-]+", text.lower()) if word not in _EMPTY]


@functools.cache
def _subjects():
    return tuple(emoji for emoji in all_emoji().values() if not emoji.tone)


@functools.cache
def _word_weights():
    """(word -> how much it tells, the words as a list)."""
    counts = Counter()
    for emoji in _subjects():
        counts.update({word for text in (emoji.name, *emoji.keywords) for word in _words(text)})
    return {word: math.log(len(_subjects()) / n) for word, n in counts.items()}, list(counts)
