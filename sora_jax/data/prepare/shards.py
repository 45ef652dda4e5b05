"""Which sources go into which shard, and the writing of the shards."""

import contextlib
import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sora_jax.config.schema import DataSettings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write
from sora_jax.data.prepare.captions import Source
from sora_jax.data.prepare.cut import Cutter, one_ahead
from sora_jax.data.prepare.encode import Encoders
from sora_jax.data.records.records import Clip
from sora_jax.data.records.write import write_shard
from sora_jax.data.tokenizer import Tokenizer

# Shards are small enough that little is lost at a stop, large enough that they are few.
_LEAST_SHARDS = 16
_MOST_SOURCES = 256
_MOST_BYTES = 64 * 2**20  # unless one file alone is larger


@dataclasses.dataclass(frozen=True)
class Written:
    """What a shard holds: written beside it, as JSON, once it is complete.

    clips: of its records, in order.
    sha256: of the file.
    skipped: (name, reason) of its sources that gave no clip, or not all.
    notes: number of sources by remark.
    """

    clips: list[Clip]
    sha256: str
    skipped: list[tuple[str, str]]
    notes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard to write: its split, its file, and the sources whose clips it holds."""

    split: str
    path: pathlib.Path
    sources: list[Source]

    @property
    def description(self) -> pathlib.Path:
        """The file that describes the shard; it exists only if the shard is complete."""
        return self.path.with_suffix(".json")

    def read_description(self) -> Written:
        values = json.loads(self.description.read_text())
        return Written(**{**values, "clips": [Clip.from_dict(clip) for clip in values["clips"]]})


def split_sources(sources: list[Source], hashes: dict[str, str], validation: float) -> dict[str, list[Source]]:
    """The sources of each split, chosen by content hash, so that copies of a file are in the same split.

    A source stays in its split when others are added, unless one split would be empty otherwise.

    Args:
      hashes: by name, 16 hex digits each.
      validation: share of the sources to hold out, in [0, 1].
    """
    shares = {source.name: int(hashes[source.name], 16) / 16**16 for source in sources}
    held_out = {name for name, share in shares.items() if share < validation}
    if not held_out and validation > 0 and len(sources) > 1:
        held_out = {min(shares, key=shares.get)}
    if len(held_out) == len(sources):
        held_out.remove(max(shares, key=shares.get))
    return {
        "train": [source for source in sources if source.name not in held_out],
        "validation": [source for source in sources if source.name in held_out],
    }


def plan_shards(folder: pathlib.Path, splits: dict[str, list[Source]]) -> list[Shard]:
    """The shards of all splits, whose files will lie in `folder`."""
    return [
        Shard(split, folder / f"{split}-{number:05d}", group)
        for split, sources in splits.items()
        for number, group in enumerate(_groups(sources))
    ]


def _groups(sources):
    """Sources in the order given, in groups of bounded number and size."""
    groups, size = [], math.inf
    most = min(_MOST_SOURCES, math.ceil(len(sources) / _LEAST_SHARDS))
    for source in sources:
        source_bytes = source.path.stat().st_size if source.path.is_file() else 0
        if size + source_bytes > _MOST_BYTES or len(groups[-1]) == most:
            groups.append([])
            size = 0
        groups[-1].append(source)
        size += source_bytes
    return groups


def write_shards(
    shards: list[Shard],
    data: DataSettings,
    encoders: Encoders,
    words: Tokenizer,
    multiple: tuple[int, int],
    console: Console,
):
    """Write the shards that are not complete yet; with several processes, each writes its part of them.

    Args:
      words: the tokenizer.
      multiple: heights and widths are multiples of these.
    """
    mine = shards[jax.process_index() :: jax.process_count()]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("preparing", total=sum(len(shard.sources) for shard in mine))
        for shard in mine:
            if shard.description.exists():
                progress.advance(task, len(shard.sources))
                continue
            cutter = Cutter(shard.split, data, words, multiple, lambda: progress.advance(task))
            records = _encode(cutter.clips(shard.sources), words, encoders)
            clips, sha256 = write_shard(shard.path, encoders.arrays, records)
            written = Written(clips, sha256, cutter.skipped, dict(cutter.notes))
            with atomic_write(shard.description) as path:
                path.write_text(json.dumps(dataclasses.asdict(written), ensure_ascii=False))


def _encode(clips, words, encoders):
    """Each clip with the arrays of its record; the next clip is decoded meanwhile."""
    with contextlib.closing(one_ahead(clips)) as clips:
        for clip, pixels in clips:
            arrays = encoders.video(pixels) if encoders.video else {"pixels": pixels}
            arrays |= encoders.text(clip.captions, words) if encoders.text else {}
            for name, array in arrays.items():
                if name != "pixels" and not np.isfinite(array.astype(np.float32)).all():
                    where = encoders.text.settings.weights if name == "text" else encoders.video.folder
                    raise InputError(f"{where}: its {name} of {clip.source} are not finite")
            yield dataclasses.replace(clip, shape=next(iter(arrays.values())).shape), arrays
