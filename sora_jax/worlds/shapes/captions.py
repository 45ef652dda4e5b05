"""Captions of the shapes world: terse, plain, or long and in varied words."""

import random

STYLES = ("plain", "terse", "long")

_SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
_VERBS = ("moves", "glides", "slides", "drifts", "travels")
_SPEEDS = {"slow": ("slowly", "gently", "at a slow pace"), "fast": ("quickly", "rapidly", "at a fast pace")}
_MOTIONS = {
    "left": ("to the left", "leftwards", "from right to left"),
    "right": ("to the right", "rightwards", "from left to right"),
    "up": ("upwards", "towards the top", "from bottom to top"),
    "down": ("downwards", "towards the bottom", "from top to bottom"),
}
_STILL = ("stays still", "does not move", "rests in its place")
_BACKGROUNDS = {
    "black": ("a plain black background", "a dark, black backdrop"),
    "grey": ("a plain grey background", "an even grey backdrop"),
    "white": ("a plain white background", "a bright, white backdrop"),
    "blue": ("a plain blue background", "an even blue backdrop"),
    "sky": ("a pale sky that brightens downwards", "a soft sky gradient"),
}
_OPENINGS = ("", "In this video, ", "A short animation: ", "The camera is fixed: ")
_PICTURES = ("", "In this picture, ", "A simple drawing: ", "A still image: ")


def caption(scene, style: str, *, moving: bool, bounced: list[bool]) -> str:
    """A caption of a scene; the same for the same scene and style.

    Args:
      scene: a `renderer.Scene`.
      style: one of STYLES.
      moving: False for a picture, whose caption leaves out motion.
      bounced: for each thing, whether it bounces off an edge.
    """
    words = random.Random(f"{scene.wording} {style}")
    if style == "terse":
        things = " and ".join(_terse(thing, moving) for thing in scene.things)
        return f"{things}, {scene.background} background"
    if style == "plain":
        things = " and ".join(_plain(thing, moving, words) for thing in scene.things)
        return f"{things} on a {scene.background} background"
    things = [_long(*pair, moving, words) for pair in zip(scene.things, bounced, strict=True)]
    where = f"{words.choice(('on', 'against', 'in front of'))} {words.choice(_BACKGROUNDS[scene.background])}"
    opening = words.choice(_OPENINGS if moving else _PICTURES)
    text = opening + words.choice((f"{', while '.join(things)}, {where}", f"{where}, {', and '.join(things)}"))
    return text[0].upper() + text[1:] + "."


def _terse(thing, moving):
    motion = f" moving {thing.motion}" if thing.motion != "still" else " still"
    return f"{thing.colour} {thing.shape}{motion if moving else ''}"


def _plain(thing, moving, words):
    text = f"{_article(thing.size)} {thing.colour} {thing.shape}"
    if not moving:
        return text
    if thing.motion == "still":
        return f"{text} stays still"
    adverb = words.choice(("", f" {_SPEEDS[thing.speed][0]}"))
    return f"{text} moves{adverb} {thing.motion}"


def _long(thing, bounced, moving, words):
    size = words.choice(_SIZES[thing.size])
    text = words.choice(
        (f"{_article(size)} {thing.colour} {thing.shape}", f"{_article(size)} {thing.shape} in {thing.colour}")
    )
    if not moving:
        return f"{text} {words.choice(('is seen', 'is shown', 'can be seen'))}"
    if thing.motion == "still":
        return f"{text} {words.choice(_STILL)}"
    verb, motion = words.choice(_VERBS), words.choice(_MOTIONS[thing.motion])
    speed = words.choice(_SPEEDS[thing.speed])
    end = words.choice((" and bounces off the edge", " until it bounces back")) if bounced else ""
    return words.choice((f"{text} {verb} {motion} {speed}{end}", f"{text} {verb} {speed} {motion}{end}"))


def _article(word):
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
