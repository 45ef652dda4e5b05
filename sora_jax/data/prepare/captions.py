"""Read tables of captions: a line for each video or picture, as in Hugging Face data sets.

A table is JSON Lines, CSV or TSV with a column for the name of the file (`file_name`, `video`, `path`, ...) and
one or more for its captions (`caption`, `text`, `prompt`, any name that ends in `caption`, or a list `captions`).
A table that can't be read without loss is refused with the number of the line.
"""

import csv
import io
import json
import pathlib

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.text_files import read_text

# Tables that are found by their name, in any folder.
TABLES = frozenset(f"{stem}.{suffix}" for stem in ("captions", "metadata") for suffix in ("jsonl", "csv", "tsv"))
NAME_KEYS = ("video", "file_name", "filename", "path", "file", "image")
CAPTION_KEYS = ("caption", "captions", "text", "prompt")
_DELIMITERS = (",", ";", "\t", "|")
_LONGEST_FIELD = 2**27  # characters

Entry = tuple[int, str, tuple[str, ...]]


def read_table(file: pathlib.Path) -> list[Entry]:
    """(number of the line, name of the file, its captions) of each line of a table.

    Raises: InputError, which names the line, if the table is absent, damaged, ambiguous or empty.
    """
    if not file.is_file():
        there = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        hint = f", {did_you_mean(file.name, there)}" if there else ""
        raise InputError(f"--captions: {file}: no such file{hint}")
    if file.suffix not in (".jsonl", ".csv", ".tsv"):
        raise InputError(
            f"--captions: {file}: must be .jsonl (an object a line), .csv or .tsv (with a header of names)"
        )
    read = _read_json_lines if file.suffix == ".jsonl" else _read_delimited
    entries = [
        (line, name_of_entry(entry, f"{file}, line {line}"), captions_of_entry(entry, f"{file}, line {line}"))
        for line, entry in read(file)
    ]
    if not entries:
        raise InputError(f"{file}: no caption in it")
    return entries


def clean(*texts: str) -> tuple[str, ...]:
    """The texts, each in one line, without empty ones and repetitions."""
    return tuple(dict.fromkeys(text for text in (" ".join(t.split()) for t in texts) if text))


def name_of_entry(entry: dict, where: str) -> str:
    """The name of the file that an entry describes."""
    key = next((key for key in NAME_KEYS if entry.get(key) not in (None, "")), None)
    if key is None or not isinstance(entry[key], str):
        keys = [k for k in entry if isinstance(k, str)]
        hint = f"; {did_you_mean(NAME_KEYS[0], keys)}" if keys else ""
        raise InputError(f"{where}: needs 'video' or 'file_name', the name of a file{hint}")
    return entry[key]


def captions_of_entry(entry: dict, where: str) -> tuple[str, ...]:
    """The captions of an entry: of the well-known keys, then of all others that end in "caption".

    Raises: InputError if there is no such key, or a caption is no text.
    """
    keys = [key for key in CAPTION_KEYS if entry.get(key) is not None]
    keys += [k for k in entry if isinstance(k, str) and k.endswith("caption") and k not in keys]
    if not keys:
        there = [k for k in entry if isinstance(k, str)]
        hint = f"; {did_you_mean('caption', there)}" if there else ""
        raise InputError(f"{where}: needs 'caption' or 'text', a text{hint}")
    texts = []
    for key in keys:
        value = entry[key]
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in values if text is not None):
            raise InputError(f"{where}: {key!r} is a caption that is no text")
        texts += [text for text in values if text is not None]
    return clean(*texts)


def _read_json_lines(file):
    entries = []
    # Not splitlines(): U+2028, U+0085 and others may stand within a caption.
    for line, text in enumerate(read_text(file, str(file)).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{file}, line {line}: no JSON object ({error.msg})") from error
        if not isinstance(entry, dict):
            raise InputError(f"{file}, line {line}: no JSON object but {text.strip()[:40]!r}")
        entries.append((line, entry))
    return entries


def _read_delimited(file):
    # csv counts all of \r, \n and \r\n as one line end if it sees them itself.
    text = io.StringIO(read_text(file, str(file)), newline="")
    delimiter = _sniff(file, text.readline().strip("\r\n"))
    text.seek(0)
    csv.field_size_limit(_LONGEST_FIELD)
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    entries, header, line = [], None, 1
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise InputError(
                f"{file}, line {line}: {error}; is a quotation mark not closed? Within quotes write two of them"
            ) from error
        if row is None:
            return entries
        if not any(row):
            continue
        if header is None:
            header = [name.strip() for name in row]
            continue
        if len(row) != len(header):
            raise InputError(
                f"{file}, line {line}: {len(row)} fields, but the header has {len(header)}; put a caption that "
                f"holds {delimiter!r} in quotation marks"
            )
        entries.append((line, dict(zip(header, row, strict=True))))


def _sniff(file, header):
    """The delimiter of a table: the one by which its header has a name of a file and a caption.

    Raises: InputError if there is none.
    """
    for delimiter in _DELIMITERS:
        names = [name.strip().strip('"') for name in header.split(delimiter)]
        if set(names) & set(NAME_KEYS) and any(n in CAPTION_KEYS or n.endswith("caption") for n in names):
            return delimiter
    raise InputError(
        f"{file}, line 1: the header {header[:60]!r} must name the file and its caption, for example video,caption"
    )
