"""Make sora_jax/worlds/emoji/subjects.tsv: the animated emoji, their names with an article, and their keywords.

npm pack cldr-annotations-full@48.2.0 cldr-annotations-derived-full@48.2.0
for name in cldr-*.tgz; do tar xzf $name --one-top-level=cldr --strip-components=1; done
python tests/benchmarks/emoji/make_table.py cldr data/emoji/animations
"""

import argparse
import json
import pathlib
import re

from sora_jax.worlds.emoji.subjects import TABLE, TONES

HEADER = """# The animated emoji of the npm packages @lobehub/fluent-emoji-anim-1 to -4, version 1.0.0:
# code points, the same with a skin tone (empty: none), name with an article, keywords.
# Names and keywords: Unicode CLDR 48.2, UNICODE LICENSE V3, (c) Unicode, Inc.
"""
PLURALS = [
    "eyes",
    "mugs",
    "flags",
    "notes",
    "prints",
    "hands",
    "footprints",
    "busts",
    "hearts",
    "biceps",
    "points",
    "lungs",
    "glasses",
    "fingers",
    "palms",
    "drops",
    "people",
    "men",
    "women",
]
SPELLED = {"’": "'", "Mx ": "Mx. ", "T-Rex": "T-rex"}


def read_annotations(folder: pathlib.Path) -> dict[str, tuple[str, list[str]]]:
    """(short name, keywords) of each emoji; the emoji without variation selectors."""
    found = {}
    for name in ("annotationsDerived", "annotations"):
        values = json.loads((folder / name / "en" / "annotations.json").read_text())[name]["annotations"]
        found |= {emoji.replace("\ufe0f", ""): (v["tts"][0], v.get("default", [])) for emoji, v in values.items()}
    return found


def with_article(name: str) -> str:
    """ "man: red hair" -> "a man with red hair"; "clapping hands" as it is."""
    for old, new in SPELLED.items():
        name = name.replace(old, new)
    head, _, parts = name.partition(": ")
    if parts == "bald":
        head, parts = f"bald {head}", ""
    joined = " and ".join(filter(None, (", ".join(parts.split(", ")[:-1]), parts.split(", ")[-1])))
    name = f"{head} {'with' if re.search('hair|beard', parts) else 'of'} {joined}" if parts else head
    noun = re.split(r" (?:with|in|of|up|without|holding) ", f"{head} ")[0].split()[-1]
    if noun in PLURALS or name.split()[0] in PLURALS:
        return name
    return f"{'an' if re.match('[aeioAEIO](?!ne[ -])|um|un(?!i)|hour', name) else 'a'} {name}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=pathlib.Path)
    parser.add_argument("animations", type=pathlib.Path, help="folder of NAME.npy, or of NAME.webp that all move")
    asked = parser.parse_args()
    known, rows = read_annotations(asked.annotations), {}
    codes = sorted(path.stem for path in asked.animations.iterdir())
    toned = {}
    for code in codes:
        tones = [part for part in code.split("-") if part in TONES]
        if tones:
            toned[plain(code)] = code.replace(tones[0], "{tone}")
    for code in codes:
        if not any(tone in code for tone in TONES):
            name, words = known["".join(chr(int(part, 16)) for part in code.split("-") if part != "fe0f")]
            rows[code] = (code, toned.get(plain(code), ""), with_article(name), ", ".join(words).replace("’", "'"))
    TABLE.write_text(HEADER + "".join("\t".join(row) + "\n" for row in rows.values()))


def plain(code: str) -> str:
    return "-".join(part for part in code.split("-") if part != "fe0f" and part not in TONES)


if __name__ == "__main__":
    main()
