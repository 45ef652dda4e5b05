"""The animated emoji: their names, keywords and skin tones, and which of them are held out of training."""

import dataclasses
import functools
import hashlib
import pathlib

TABLE = pathlib.Path(__file__).with_name("subjects.tsv")  # made by tests/benchmarks/emoji/make_table.py
TONES = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}


@dataclasses.dataclass(frozen=True)
class Emoji:
    """An animated emoji.

    code: its code points, joined by "-": the name of its file.
    subject: code of the same emoji without a skin tone; itself if it has none.
    name: of the subject, with an article: "a waving hand", "clapping hands".
    tone: of the skin, a value of TONES; "" without.
    keywords: words and phrases that people search it by.
    held_out: whether it is kept out of training: one tone of each subject that has tones.
    """

    code: str
    subject: str
    name: str
    tone: str
    keywords: tuple[str, ...]
    held_out: bool


@functools.cache
def all_emoji() -> dict[str, Emoji]:
    """Every animated emoji by its code: 734 subjects, 275 of them in five skin tones as well."""
    made = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        code, toned, name, words = line.split("\t")
        keywords = tuple(words.split(", "))
        made[code] = Emoji(code, code, name, "", keywords, False)
        if toned:
            out = list(TONES)[int(hashlib.sha256(code.encode()).hexdigest(), 16) % len(TONES)]
            for tone, tone_name in TONES.items():
                with_tone = toned.replace("{tone}", tone)
                made[with_tone] = Emoji(with_tone, code, name, tone_name, keywords, tone == out)
    return made
