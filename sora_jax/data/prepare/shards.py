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
from sora_jax.core.storage import atomic_write, digest
from sora_jax.data.prepare.cut import Cutter, Outcome, one_ahead
from sora_jax.data.prepare.encode import Encoders
from sora_jax.data.prepare.sources import Source
from sora_jax.data.records.records import Clip
from sora_jax.data.records.write import write_shard
from sora_jax.data.tokenizer import Tokenizer

MAX_SOURCES = 256  # in a shard
_LEAST_SHARDS = 16  # of a large enough set: little is lost at a stop, and several processes have work
_MOST_SHARDS = 4096  # a data set that grows keeps the size of its shards until there are more
_MAX_BYTES = 64 * 2**20  # of the files in a shard, unless one file alone is larger
_HASH_BITS = 64


@dataclasses.dataclass(frozen=True)
class Written:
    """What a shard holds: written beside it, as JSON, once it is complete.

    clips: of its records, in order.
    sha256: of the file.
    outcomes: of its sources.
    """

    clips: list[Clip]
    sha256: str
    outcomes: list[Outcome]


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard to write.

    split: "train" or "validation".
    digest: hash of everything that its content depends on.
    path: the file while the data set is not finished.
    sources: whose clips it holds.
    """

    split: str
    digest: str
    path: pathlib.Path
    sources: list[Source]

    @property
    def description(self) -> pathlib.Path:
        """The file that describes the shard; it exists only if the shard is complete."""
        return self.path.with_suffix(".json")

    def write_description(self, written: Written):
        with atomic_write(self.description) as path:
            path.write_text(json.dumps(dataclasses.asdict(written), ensure_ascii=False))

    def read_description(self) -> Written:
        values = json.loads(self.description.read_text())
        return Written(
            [Clip.from_dict(clip) for clip in values["clips"]],
            values["sha256"],
            [Outcome.from_dict(outcome) for outcome in values["outcomes"]],
        )


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
    if sources and len(held_out) == len(sources):
        held_out.remove(max(shares, key=shares.get))
    return {
        "train": [source for source in sources if source.name not in held_out],
        "validation": [source for source in sources if source.name in held_out],
    }


def sources_per_shard(count: int, before: int | None = None) -> int:
    """The largest number of sources in a shard of a data set of `count` sources.

    Args:
      before: that of the data set to which files are added; it is kept while there are few enough shards, since
        another number would change every shard.
    """
    if before is not None and count <= before * _MOST_SHARDS:
        return before
    return min(MAX_SOURCES, math.ceil(count / _LEAST_SHARDS))


def plan_shards(
    folder: pathlib.Path, splits: dict[str, list[Source]], hashes: dict[str, str], limit: int, key: str
) -> list[Shard]:
    """The shards of all splits.

    Sources go into shards by the hash of their name, halved until a group is small enough: a file that is added,
    removed or changed changes its own shard alone. The same files give the same shards whatever came before.

    Args:
      folder: where the files of the shards will lie.
      hashes: content hashes, by name.
      limit: the largest number of sources in a shard.
      key: hash of everything else that the records depend on.
    """
    shards = []
    for split, sources in splits.items():
        by_hash = sorted(((int(digest(s.name), 16), s) for s in sources), key=lambda pair: (pair[0], pair[1].name))
        for group in _groups(by_hash, limit, _HASH_BITS - 1):
            content = digest([key, split, [(s.name, hashes[s.name], s.captions) for s in group]])
            shards.append(Shard(split, content, folder / f"{split}-{content}", group))
    return shards


def _groups(hashed, limit, bit):
    """Groups of sources, each sorted by name; `hashed`: (hash of the name, source), all equal above `bit`."""
    sources = [source for _, source in hashed]
    if not sources:
        return []
    small = len(sources) <= limit and sum(source.size for source in sources) <= _MAX_BYTES
    if small or len(sources) == 1 or bit < 0:
        return [sorted(sources, key=lambda source: source.name)]
    low = [pair for pair in hashed if not pair[0] >> bit & 1]
    return _groups(low, limit, bit - 1) + _groups(hashed[len(low) :], limit, bit - 1)


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
            shard.write_description(Written(clips, sha256, cutter.outcomes))


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
