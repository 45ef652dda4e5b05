"""Find the videos of a folder and their captions.

Captions come from the first of these that exists: a file named by the caller, captions.jsonl, captions.csv, or a
text file beside each video, with the same name and the ending .txt.
"""

import csv
import dataclasses
import io
import json
import pathlib

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.data.media.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES

CAPTION_FILES = ("captions.jsonl", "captions.csv")


@dataclasses.dataclass(frozen=True)
class Source:
    """A video or picture and its captions.

    path: the file.
    name: its path relative to the folder, with forward slashes.
    captions: any number, the main one first.
    """

    path: pathlib.Path
    name: str
    captions: tuple[str, ...]


def find_sources(folder: pathlib.Path, captions: pathlib.Path | None = None) -> list[Source]:
    """The folder's videos and pictures with their captions, sorted by name.

    Args:
      folder: searched with all its subfolders; hidden files are ignored.
      captions: a .jsonl or .csv file; only the videos that it names are used. None: see above.
    Raises: InputError if the folder is absent or has no video, or the captions name absent files.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "no such folder"
        there = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        hint = f", {did_you_mean(folder.name, there)}" if there and not folder.exists() else ""
        raise InputError(f"--videos: {folder}: {kind}{hint}")
    if captions is None:
        captions = next((folder / name for name in CAPTION_FILES if (folder / name).exists()), None)
    if captions is not None:
        return sorted(_read_captions(folder, captions), key=lambda source: source.name)
    sources = [Source(path, _name(folder, path), _text_beside(path)) for path in _videos(folder)]
    if not sources:
        there = sorted({path.suffix or path.name for path in folder.iterdir()})
        holds = f"it holds {', '.join(there[:8])}" if there else "it is empty"
        raise InputError(f"--videos: {folder}: no video or picture in it, {holds}")
    return sorted(sources, key=lambda source: source.name)


def _videos(folder):
    """The videos and pictures of a folder and its subfolders."""
    suffixes = VIDEO_SUFFIXES | IMAGE_SUFFIXES
    inside = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return [p for p in inside if not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def _name(folder, path):
    return path.relative_to(folder).as_posix()


def _text_beside(path):
    text = path.with_suffix(".txt")
    return _clean(_read_text(text)) if text.exists() else ()


def _read_text(path):
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); convert it") from error


def _clean(*texts):
    """The texts, each in one line, without empty ones and repetitions."""
    return tuple(dict.fromkeys(text for text in (" ".join(t.split()) for t in texts) if text))


def _read_captions(folder, file):
    if not file.is_file():
        there = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        raise InputError(
            f"--captions: {file}: no such file" + (f", {did_you_mean(file.name, there)}" if there else "")
        )
    if file.suffix not in (".jsonl", ".csv"):
        raise InputError(f"--captions: {file}: must be .jsonl (an object a line) or .csv (with a header)")
    entries = (_json_entries if file.suffix == ".jsonl" else _csv_entries)(file)
    if not entries:
        raise InputError(f"{file}: no caption in it")
    sources, lines, absent = [], {}, []
    for line, entry in entries:
        name, captions = _parse(entry, f"{file}, line {line}")
        path = folder / name
        if not path.is_file():
            absent.append((line, name))
            continue
        if path in lines:
            raise InputError(f"{file}, line {line}: {name} has its caption in line {lines[path]} already")
        lines[path] = line
        sources.append(Source(path, name, captions))
    if absent:
        raise InputError(_explain_absent(folder, file, absent))
    return sources


def _explain_absent(folder, file, absent):
    line, name = absent[0]
    more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
    names = [_name(folder, path) for path in _videos(folder)]
    hint = "names are relative to the folder of videos"
    if 0 < len(names) < 1000:
        hint = did_you_mean(name, names)
    return f"{file}, line {line}: no file {name!r} in {folder}{more}; {hint}"


def _json_entries(file):
    entries = []
    for line, text in enumerate(_read_text(file).splitlines(), start=1):
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


def _csv_entries(file):
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""))
    return [(reader.line_num, entry) for entry in reader]


def _parse(entry, where):
    """The file's name and its captions: of the key "caption", then of all other keys that end in "caption"."""
    for key in ("video", "caption"):
        if not isinstance(entry.get(key), str):
            keys = [k for k in entry if isinstance(k, str)]
            hint = f"; {did_you_mean(key, keys)}" if keys else ""
            raise InputError(f"{where}: needs {key!r}, a text{hint}")
    others = [entry[key] for key in entry if isinstance(key, str) and key.endswith("caption") and key != "caption"]
    if not all(isinstance(text, str) for text in others):
        raise InputError(f"{where}: a caption that is no text")
    return entry["video"], _clean(entry["caption"], *others)
