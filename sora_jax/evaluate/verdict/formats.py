"""Tables of an evaluation: for the terminal, as Markdown, as CSV, and as JUnit's XML."""

import csv
import io
import pathlib
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence

import rich.table

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import atomic_write
from sora_jax.evaluate.verdict.decisions import Check
from sora_jax.evaluate.verdict.numbers import shown
from sora_jax.evaluate.verdict.statistics import Number

MANY = 3  # subjects
COLUMNS = 5  # measures that a terminal shows of many subjects
FILES = {"markdown": "evaluation.md", "csv": "evaluation.csv", "junit": "junit.xml"}

Numbers = Mapping[str, Mapping[str, Number]]  # subject -> short name of a measure -> number


def parse_formats(texts: Sequence[str], out: pathlib.Path) -> dict[str, str]:
    """Format -> file, from "markdown", "csv:FILE", "junit:-"; "-" is standard output. Raises: InputError."""
    made: dict[str, str] = {}
    for text in texts:
        name, _, file = text.strip().partition(":")
        if name == "json":
            raise InputError(f"--format={text}: {out / 'evaluation.json'} is always written")
        if name not in FILES:
            raise InputError(f"--format={text}: {did_you_mean(name, FILES)}")
        made[name] = file or str(out / FILES[name])
    if list(made.values()).count("-") > 1:
        raise InputError("--format: only one format can go to standard output")
    return made


def rows_of(numbers: Numbers) -> list[list[str]]:
    """A row for each measure: its name, and its number for each subject."""
    names = dict.fromkeys(name for found in numbers.values() for name in found)
    return [[name, *(shown(n[name]) if name in n else "" for n in numbers.values())] for name in names]


def terminal(numbers: Numbers) -> rich.table.Table:
    """A table with a column for each subject; of many subjects one with a row for each."""
    if len(numbers) > MANY:
        names = dict.fromkeys(
            name for found in numbers.values() for name, number in found.items() if number.better
        )
        table = rich.table.Table("subject", *names)
        for subject, found in numbers.items():
            cells = (shown(found[name], interval=False) if name in found else "" for name in names)
            table.add_row(subject, *cells)
        return table
    table = rich.table.Table("measure", *numbers)
    for row in rows_of(numbers):
        table.add_row(*row)
    return table


def markdown(numbers: Numbers, sentences: Sequence[str], checks: Sequence[Check], about: str) -> str:
    def row(cells):
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    lines = [*(f"- {sentence}" for sentence in sentences), ""] if sentences else []
    lines += [row(["measure", *numbers]), row(["---"] * (1 + len(numbers))), *map(row, rows_of(numbers))]
    if checks:
        lines += ["", row(["subject", "asked", "found", "holds"]), row(["---"] * 4)]
        lines += [row([c.subject, c.asked, c.found, "yes" if c.holds else "**no**"]) for c in checks]
    return "\n".join([*lines, "", about, ""])


def as_csv(numbers: Numbers) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["subject", "measure", "value", "low", "high", "samples", "better"])
    for subject, found in numbers.items():
        for name, n in found.items():
            ends = ["" if end is None else end for end in (n.low, n.high)]
            writer.writerow([subject, name, n.value, *ends, n.of or "", n.better])
    return text.getvalue()


def junit(checks: Sequence[Check]) -> str:
    """A test case for each check, as CI systems read them."""
    failed = [check for check in checks if not check.holds]
    root = ET.Element("testsuites")
    suite = ET.SubElement(
        root, "testsuite", name="sora-jax evaluate", tests=str(len(checks)), failures=str(len(failed)), errors="0"
    )
    for check in checks:
        case = ET.SubElement(suite, "testcase", classname=check.subject, name=check.asked)
        if not check.holds:
            ET.SubElement(case, "failure", message=check.found).text = check.found
        else:
            ET.SubElement(case, "system-out").text = check.found
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_formats(
    formats: Mapping[str, str], numbers: Numbers, sentences: Sequence[str], checks: Sequence[Check], about: str
):
    """Write each format into its file. Raises: InputError if one can't be written."""
    for name, file in formats.items():
        text = {
            "markdown": lambda: markdown(numbers, sentences, checks, about),
            "csv": lambda: as_csv(numbers),
            "junit": lambda: junit(checks),
        }[name]()
        if file == "-":
            sys.stdout.write(text)
            continue
        with atomic_write(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
