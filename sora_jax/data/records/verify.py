"""Read a whole data set and say what of it is broken."""

import functools
import hashlib
import json
import pathlib

from array_record.python.array_record_data_source import ArrayRecordDataSource
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from sora_jax.core.errors import InputError
from sora_jax.data.records.records import Clip, Records

_PIECE = 2**23  # bytes read at a time


def verify(path: pathlib.Path, console: Console) -> None:
    """Compare every file of a data set with its SHA-256, and read one by one the records of shards that differ.

    Raises: InputError if it is no data set, or a file is missing or broken; each was told on the console by then.
    """
    records = Records(path, None, where="--data")
    folder, sums = records.path, records.sums
    sizes = {name: (folder / name).stat().st_size for name in sums if (folder / name).is_file()}
    broken = [name for name in sums if name not in sizes]
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("verifying", total=sum(sizes.values()))
        advance = functools.partial(progress.advance, task)
        broken += [name for name in sizes if _sha256(folder / name, advance) != sums[name]]
    known = not {"dataset_info.json", "manifest.jsonl"} & set(broken)
    for name in broken:
        for line in _told(folder, name, missing=name not in sizes, known=known):
            console.print(f"{name}: {line}", markup=False, highlight=False, soft_wrap=True)
    if broken:
        raise InputError(
            f"--data: {len(broken)} of the {len(sums)} files of {folder} are broken, {broken[0]} for one; "
            f"copy them anew from where they are whole, or prepare the data set anew"
        )
    size = sum(sizes.values()) / 2**20
    told = f"{folder}: {len(sums)} files, {size:,.1f} MiB, all as they were written"
    console.print(told, highlight=False, soft_wrap=True)


def _sha256(path, advance):
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                found.update(piece)
                advance(len(piece))
    except OSError as error:  # a disk that can't read it back
        return str(error)
    return found.hexdigest()


def _told(folder, name, *, missing, known):
    """What is wrong with a file, a line each.

    Args:
      known: whether the files can be trusted that say which records lie in which shard.
    """
    if ".array_record-" not in name:
        return ["is missing" if missing else "is not what was written"]
    clips = _clips_of(folder, name) if known else None
    lost = "" if clips is None else f"; its {len(clips)} records are lost"
    if missing:
        return [f"is missing{lost}"]
    try:
        source = ArrayRecordDataSource(str(folder / name))
        count = len(source)
    except RuntimeError as error:
        return [f"can't be opened, {_reason(error)}{lost}"]
    lines = []
    for number in range(count):
        try:
            source[number]
        except RuntimeError as error:
            which = "" if clips is None else f" ({clips[number].source} from {clips[number].start:g} s)"
            lines.append(f"record {number}{which} can't be read, {_reason(error)}")
    return lines or [f"is not what was written, though its {count} records can be read"]


def _clips_of(folder, name):
    """The manifest's lines of the records in a shard."""
    split, number = name.split("-", 1)[1].split(".")[0], int(name.split("-")[-3])
    splits = json.loads((folder / "dataset_info.json").read_text())["splits"]
    lengths = next([int(n) for n in info["shardLengths"]] for info in splits if info["name"] == split)
    with (folder / "manifest.jsonl").open() as lines:
        clips = [clip for clip in (Clip.from_dict(json.loads(line)) for line in lines) if clip.split == split]
    first = sum(lengths[:number])
    return clips[first : first + lengths[number]]


def _reason(error):
    return str(error).partition(";")[0]
