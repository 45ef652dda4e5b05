"""Find the videos and pictures of a folder, their captions, and a reason for each file that is left out.

A folder may hold files, sub-folders, links to folders, and webdataset tars (`000.mp4`, `000.txt`, `000.json`).
Captions come from tables (`data/prepare/captions.py`) and from a `.txt` or `.json` of the same name beside a file.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator

from sora_jax.core.errors import InputError, did_you_mean, printable
from sora_jax.core.storage import as_path, content_hash, in_bucket, local_file
from sora_jax.core.text_files import decode_text, read_text
from sora_jax.data.media.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from sora_jax.data.prepare.captions import TABLES, captions_of_entry, clean, read_table

_MEDIA = VIDEO_SUFFIXES | IMAGE_SUFFIXES
_COPY_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Source:
    """A video or picture and its captions.

    path: the file, or the tar that holds it.
    name: its path relative to the folder, with forward slashes; in a tar, the tar's path and the member's name.
    captions: any number, the main one first.
    span: (first byte, size) of the file in its tar; None if `path` is the file itself.
    """

    path: pathlib.Path
    name: str
    captions: tuple[str, ...] = ()
    span: tuple[int, int] | None = None

    @functools.cached_property
    def size(self) -> int:
        """In bytes; 0 if the file is not there."""
        if self.span:
            return self.span[1]
        if in_bucket(self.path):
            return self.path.stat().st_size
        return self.path.stat().st_size if self.path.is_file() else 0

    def hash(self) -> str:
        """SHA-256 of the content, 16 hex digits. Raises: InputError or OSError if it can't be read."""
        if self.span is None:
            return content_hash(self.path)
        found = hashlib.sha256()
        for chunk in self._chunks():
            found.update(chunk)
        return found.hexdigest()[:16]

    @contextlib.contextmanager
    def opened(self) -> Iterator[pathlib.Path]:
        """A path to a file with the content: a temporary copy of what lies in a tar or in a bucket."""
        if self.span is None and not in_bucket(self.path):
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="sora_jax-") as folder:
            path = pathlib.Path(folder, pathlib.PurePosixPath(self.name).name)
            if in_bucket(self.path) and self.span is None:
                self.path.download(path)
            else:
                with path.open("wb") as file:
                    file.writelines(self._chunks())
            yield path

    def _chunks(self):
        first, left = self.span
        with local_file(self.path).open("rb") as file:
            file.seek(first)
            while left and (chunk := file.read(min(left, _COPY_BYTES))):
                left -= len(chunk)
                yield chunk


@dataclasses.dataclass(frozen=True)
class Found:
    """The contents of a folder.

    sources: videos and pictures to use, sorted by name.
    skipped: (name, reason) of videos and pictures that are left out.
    other: names of files of other kinds.
    """

    sources: list[Source]
    skipped: list[tuple[str, str]]
    other: list[str]


def find_sources(folder: pathlib.Path, captions: pathlib.Path | None = None) -> Found:
    """The folder's videos and pictures with their captions.

    Args:
      folder: searched with its sub-folders and links to folders; hidden files are ignored.
      captions: a table of captions (.jsonl, .csv or .tsv) with names relative to the folder. None: each
        `captions` or `metadata` table in the folder and its sub-folders, with names relative to where it lies.
    Returns: where there are tables, the files that they name; else all files.
    Raises: InputError if the folder is absent or has no video, or a table is damaged or names absent files.
    """
    folder = as_path(folder)
    _check_folder(folder)
    names = list(_walk(folder))
    tables = [as_path(captions)] if captions else [folder / n for n in names if _base(n) in TABLES]
    media, skipped, other = {}, [], []
    for name in names:
        if reason := _bad_name(name):
            skipped.append((printable(name), reason))
        elif _suffix(name) == ".tar":
            try:
                media |= {source.name: source for source in _read_tar(folder / name, name)}
            except InputError as error:
                skipped.append((name, str(error).removeprefix(f"{folder / name}: ")))
        elif _suffix(name) in _MEDIA:
            media[name] = Source(folder / name, name)
        elif folder / name not in tables:
            other.append(name)
    beside = {name for name in other if _suffix(name) in (".txt", ".json")}
    if tables:
        media, unnamed = _captions_from_tables(folder, tables, media, relative_to_folder=captions is not None)
        skipped += unnamed
    else:
        for name, source in list(media.items()):
            try:
                media[name] = _captions_beside(folder, source, beside)
            except InputError as error:
                skipped.append((name, "its caption can't be read: " + str(error).removeprefix(f"{folder}/")))
                del media[name]
        stems = {_stem(name) for name in media}
        other = [name for name in other if name not in beside or _stem(name) not in stems]
    if not media and not skipped:
        _raise_empty(folder)
    sources = []
    for name in sorted(media):
        reason = next(filter(None, map(lone_surrogate, media[name].captions)), "")
        if reason:
            skipped.append((name, reason))
        else:
            sources.append(media[name])
    return Found(sources, sorted(skipped), sorted(other))


def lone_surrogate(caption: str) -> str:
    """Why a caption can't be stored; "" if it can."""
    half = next((char for char in caption if 0xD800 <= ord(char) <= 0xDFFF), "")
    return f"its caption was cut in the middle of a character (\\u{ord(half):04x}); write it anew" if half else ""


def _check_folder(folder):
    if folder.is_dir():
        return
    kind = "is a file, not a folder" if folder.exists() else "no such folder"
    there = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    hint = f", {did_you_mean(folder.name, there)}" if there and not folder.exists() else ""
    raise InputError(f"--videos: {folder}: {kind}{hint}")


def _raise_empty(folder):
    there = sorted({path.suffix or path.name for path in folder.iterdir()})
    holds = f"it holds {', '.join(there[:8])}" if there else "it is empty"
    raise InputError(f"--videos: {folder}: no video or picture in it, {holds}")


def _walk(folder):
    """Names of the files below a folder, relative to it; links to folders are followed, each folder once."""
    if in_bucket(folder):
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
        yield from sorted(name for name in names if not name.startswith(".") and "/." not in name)
        return
    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        status = pathlib.Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            pathlib.Path(here, name).relative_to(folder).as_posix() for name in sorted(files) if name[0] != "."
        )


def _bad_name(name):
    """Why a name can't be stored; "" if it can."""
    kinds = {unicodedata.category(char) for char in name}
    if "Cs" in kinds:  # Python's stand-ins for bytes that are not UTF-8
        return "its name is not UTF-8; rename it"
    return "its name holds a control character; rename it" if "Cc" in kinds else ""


def _base(name):
    return name.rpartition("/")[2]


def _suffix(name):
    return pathlib.PurePosixPath(name).suffix.lower()


def _stem(name):
    return str(pathlib.PurePosixPath(name).with_suffix(""))


def _captions_from_tables(folder, tables, media, *, relative_to_folder):
    """(the media that the tables name with their captions; (name, reason) of the others)."""
    named, places, absent = {}, {}, []
    for table in tables:
        start = "" if relative_to_folder else _base_folder(table.relative_to(folder).as_posix())
        for line, name, captions in read_table(table):
            name = os.path.normpath(start + name)
            if name not in media:
                absent.append((table, line, name))
                continue
            if name in places:
                raise InputError(f"{table}, line {line}: {name} has its caption in {places[name]} already")
            places[name] = f"line {line}" if len(tables) == 1 else f"{table.name}, line {line}"
            named[name] = dataclasses.replace(media[name], captions=captions)
    if absent:
        _raise_absent(folder, absent, list(media))
    names = ", ".join(sorted({table.name for table in tables}))
    return named, [(name, f"{names} does not name it") for name in media if name not in named]


def _base_folder(name):
    return name[: name.rfind("/") + 1]


def _raise_absent(folder, absent, names):
    table, line, name = absent[0]
    if (folder / name).is_file():
        raise InputError(f"{table}, line {line}: {name!r} is no video or picture that can be read")
    more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
    hint = "names are relative to the folder of videos"
    if 0 < len(names) < 1000:
        hint = did_you_mean(name, names)
    raise InputError(f"{table}, line {line}: no file {name!r} in {folder}{more}; {hint}")


def _captions_beside(folder, source, beside):
    """The source with the captions in the .txt or .json of the same name."""
    if source.captions:
        return source
    stem = _stem(source.name)
    texts: tuple[str, ...] = ()
    if f"{stem}.txt" in beside:
        texts += clean(read_text(folder / f"{stem}.txt", str(folder / f"{stem}.txt")))
    if f"{stem}.json" in beside:
        path = folder / f"{stem}.json"
        texts += _captions_of_json(read_text(path, str(path)), str(path))
    return dataclasses.replace(source, captions=tuple(dict.fromkeys(texts)))


def _captions_of_json(text, where):
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: no JSON ({error})") from None
    return captions_of_entry(entry, where) if isinstance(entry, dict) else ()


def _read_tar(path, name):
    """The videos and pictures of a webdataset tar, whose members of one key belong together."""
    media, texts = [], {}
    try:
        with tarfile.open(local_file(path), "r:") as tar:
            for member in tar:
                suffix = _suffix(member.name)
                if not member.isfile() or _base(member.name).startswith("."):
                    continue
                if suffix in _MEDIA:
                    media.append((member.name, (member.offset_data, member.size)))
                elif suffix in (".txt", ".json"):
                    where = f"{path}: {member.name}"
                    text = decode_text(tar.extractfile(member).read(), where)
                    found = clean(text) if suffix == ".txt" else _captions_of_json(text, where)
                    texts[_stem(member.name)] = (*texts.get(_stem(member.name), ()), *found)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{path}: can't be read as a tar ({error}); it must not be compressed") from error
    return [
        Source(path, f"{name}/{member}", tuple(dict.fromkeys(texts.get(_stem(member), ()))), span)
        for member, span in media
    ]
