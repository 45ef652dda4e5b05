"""Check every file of a data set against its SHA-256."""

import functools
import hashlib
import json
import pathlib

from array_record.python.array_record_data_source import ArrayRecordDataSource
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from sora_jax.core.errors import InputError
from sora_jax.core.storage import local_file
from sora_jax.data.records.records import Clip, Records

_CHUNK = 2**23  # bytes read at a time


def verify(path: pathlib.Path, console: Console) -> None:
    """Compare every file of a data set with its SHA-256; of shards that differ, try to read each record.

    Args:
      path: folder of the data set.
      console: for the progress and a line for each broken file.
    Raises: InputError if it is no data set, or a file is missing or broken.
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
    index_is_intact = not {"dataset_info.json", "manifest.jsonl"} & set(broken)
    for name in broken:
        for line in _explain(folder, name, missing=name not in sizes, index_is_intact=index_is_intact):
            console.print(f"{name}: {line}", markup=False, highlight=False, soft_wrap=True)
    if broken:
        raise InputError(
            f"--data: {len(broken)} of the {len(sums)} files of {folder} are broken, {broken[0]} for one; "
            f"copy them anew from where they are whole, or prepare the data set anew"
        )
    size = sum(sizes.values()) / 2**20
    line = f"{folder}: {len(sums)} files, {size:,.1f} MiB, all as they were written"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _sha256(path, advance):
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
                advance(len(chunk))
    except OSError as error:  # a failing disk
        return str(error)
    return found.hexdigest()


def _explain(folder, name, *, missing, index_is_intact):
    """Lines that say what is wrong with a file.

    Args:
      index_is_intact: whether the manifest and TFDS's metadata, which say what lies in which shard, are intact.
    """
    if ".array_record-" not in name:
        return ["is missing" if missing else "is not what was written"]
    clips = _clips_of(folder, name) if index_is_intact else None
    lost = "" if clips is None else f"; its {len(clips)} records are lost"
    if missing:
        return [f"is missing{lost}"]
    try:
        source = ArrayRecordDataSource(str(local_file(folder / name)))
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
