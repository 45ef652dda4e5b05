"""Records of shards in a bucket, read from copies in this host's cache."""

import bisect
import dataclasses
import itertools
import pathlib
import threading
from collections.abc import Mapping, Sequence

from array_record.python.array_record_data_source import ArrayRecordDataSource

from sora_jax.core.local_cache import local_cache


class ShardCopies:
    """The records of a split in order; a shard is copied, and checked, when one of its records is first asked for.

    Args:
      folder: of the data set, in a bucket.
      parts: TFDS's instructions for the split's files, in order.
      sums: SHA-256 of each file by name.
    """

    def __init__(self, folder: pathlib.Path, parts: Sequence, sums: Mapping[str, str]):
        self._folder, self._parts, self._sums = folder, parts, sums
        self._ends = list(itertools.accumulate(part.take for part in parts))
        self._sources: dict[int, ArrayRecordDataSource] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        number = bisect.bisect_right(self._ends, index)
        first = self._ends[number - 1] if number else 0
        return self._source(number)[index - first]

    def _source(self, number: int) -> ArrayRecordDataSource:
        with self._lock:  # threads that ask for one shard wait for one copy
            if number not in self._sources:
                part = self._parts[number]
                name = pathlib.PurePath(part.filename).name
                copy = local_cache().copy_of(self._folder / name, self._sums[name])
                self._sources[number] = ArrayRecordDataSource(dataclasses.replace(part, filename=str(copy)))
            return self._sources[number]

    def __getstate__(self) -> dict:
        """For other processes, which open the copies themselves."""
        return self.__dict__ | {"_sources": {}, "_lock": None}

    def __setstate__(self, state: dict):
        self.__dict__ |= state | {"_lock": threading.Lock()}
