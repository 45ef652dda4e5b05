"""A prepared data set on disk: records that TFDS reads, and a manifest with one line for each.

    clips-train.array_record-00000-of-00004 ...   the records; a record is one clip. Files were added later: clips2
    clips-validation.array_record-00000-of-00001  those of the held-out sources
    dataset_info.json, features.json              metadata for TFDS
    manifest.jsonl                                one line per record, in order: train, then validation
    tokenizer.model                               trained on the captions, or a copy of the one given
    autoencoder/                                  a copy of the autoencoder that made the latents (latents only)
    SHA256SUMS                                    of all these files, for `sora-jax data verify` or sha256sum -c
    prepared.json                                 what became of each file; the shards and their hashes
    about.json                                    what was asked for and what was made; written last

Written without TensorFlow and readable by `tfds.builder_from_directory(...).as_data_source(split)`.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import ml_dtypes  # registers numpy's bfloat16, without which TFDS asks for TensorFlow
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.local_cache import cache_is_named
from sora_jax.core.storage import as_path, in_bucket
from sora_jax.data.records.shard_copies import ShardCopies

SPLITS = ("train", "validation")
KINDS = ("pixels", "latents")
SUMS = "SHA256SUMS"

# TFDS's keys of an array's bytes. Where two or more dimensions are free, the shape has a key of its own beside it.
_ARRAYS = {f"{name}/value".encode(): name for name in (*KINDS, "given")} | {b"image": "image", b"text": "text"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """One line of the manifest.

    split: "train" or "validation".
    source: path of the file it was cut from, relative to the folder of videos.
    start, end: its span in that file, in seconds.
    fps: frames per second.
    frames, height, width: of its pixels.
    shape: of the record's array: [F, H, W, 3] pixels or [f, h, w, C] latents.
    captions: one or more; validation uses the first.
    tokens: length of each caption in tokens, end token included, before truncation.
    """

    split: str
    source: str
    start: float
    end: float
    fps: float
    frames: int
    height: int
    width: int
    shape: tuple[int, int, int, int]
    captions: tuple[str, ...]
    tokens: tuple[int, ...]

    @classmethod
    def from_dict(cls, values: dict) -> "Clip":
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**fields)


class Records:
    """A finished data set, for reading.

    Args:
      path: the folder that `prepare` wrote.
      kind: what its records must hold, "pixels" or "latents"; None: either.
      where: name of the path in error messages.
    Raises: InputError if it is absent, unfinished or of the other kind.
    """

    def __init__(self, path: str | pathlib.Path, kind: str | None, *, where: str = "config.data.path"):
        if not str(path):
            raise InputError(f"{where}: name the folder that `prepare` wrote")
        self.path = as_path(path)
        if not self.path.is_dir():
            there = [p.name for p in self.path.parent.iterdir()] if self.path.parent.is_dir() else []
            raise InputError(
                f"{where}: no folder {self.path}" + (f", {did_you_mean(self.path.name, there)}" if there else "")
            )
        if not (self.path / "about.json").exists():
            raise InputError(f"{where}: {self.path} is no finished data set; run `prepare` with --out={self.path}")
        self.about = json.loads((self.path / "about.json").read_text())
        if kind is not None and self.about["kind"] != kind:
            needs = "without --autoencoder" if kind == "pixels" else "with --autoencoder=FOLDER"
            raise InputError(f"{where}: {self.path} holds {self.about['kind']}, not {kind}; run `prepare` {needs}")

    @property
    def tokenizer(self) -> pathlib.Path:
        return self.path / "tokenizer.model"

    @property
    def autoencoder(self) -> pathlib.Path:
        return self.path / "autoencoder"

    @functools.cached_property
    def sums(self) -> dict[str, str]:
        """SHA-256 of its files, except about.json, by name.

        Raises: InputError if the data set has no list of them.
        """
        if not (self.path / SUMS).is_file():
            raise InputError(f"{self.path} has no {SUMS}; prepare it anew")
        lines = (line.split("  ", 1) for line in (self.path / SUMS).read_text().splitlines())
        return {name: digest for digest, name in lines}

    def clips(self, split: str) -> list[Clip]:
        """The manifest's lines of this split; clip i describes record i.

        Raises: InputError if there is none.
        """
        clips = self._by_split.get(split)
        if not clips:
            raise InputError(
                f"{self.path}: no clip in its {split} split; prepare more videos, or change config.data.validation"
            )
        return clips

    @functools.cached_property
    def _by_split(self):
        return {split: [clip for clip in self.manifest if clip.split == split] for split in SPLITS}

    @functools.cached_property
    def manifest(self) -> list[Clip]:
        data = (self.path / "manifest.jsonl").read_bytes()
        if self.about.get("manifest") not in (None, hashlib.sha256(data).hexdigest()):
            raise InputError(
                f"{self.path}: manifest.jsonl is not that of about.json; if `prepare` was stopped, run it again, "
                f"else `sora-jax data verify --data={self.path}` lists what is broken"
            )
        return [Clip.from_dict(json.loads(line)) for line in data.decode().split("\n") if line]

    @functools.cached_property
    def _shards(self):
        """By split: (its records, the indices of the shards' first records, the shards' names)."""
        held = {}
        for split, info in tfds.builder_from_directory(str(self.path)).info.splits.items():
            parts = info.file_instructions
            first = np.cumsum([0, *(part.take for part in parts)])
            names = [pathlib.PurePath(part.filename).name for part in parts]
            held[split] = self._open(parts), first, names
        return held

    def _open(self, parts):
        """The records of some files: in a bucket from copies, if a cache is named."""
        if in_bucket(self.path):
            if cache_is_named():
                return ShardCopies(self.path, parts, self.sums)
            if self.path.scheme == "s3":
                raise InputError(
                    f"{self.path}: records in s3:// are read from copies; name --cache=FOLDER for them"
                )
        return ArrayRecordDataSource(parts)

    def read(self, split: str, index: int) -> np.ndarray:
        """One record's array: pixels uint8 [F, H, W, 3] or latents bfloat16 [f, h, w, C]."""
        return self.read_all(split, index)[self.about["kind"]]

    def read_all(self, split: str, index: int) -> dict[str, np.ndarray]:
        """The arrays of a record by name; they are read-only views of its bytes.

        Raises: InputError, which names the shard, if the record is broken.
        """
        source, first, names = self._shards[split]
        try:
            record = source[index]
            return {
                name: self._view(record, name, at, size, self.clips(split)[index].shape)
                for name, (at, size) in _payloads(record).items()
            }
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            shard = int(np.searchsorted(first, index, side="right")) - 1
            raise InputError(
                f"{self.path / names[shard]}: record {index - first[shard]} can't be read, "
                f"{str(error).partition(';')[0]}; `sora-jax data verify --data={self.path}` lists what is broken"
            ) from error

    def _view(self, record, name, at, size, shape):
        if name not in (*KINDS, "given"):
            shape = (-1, self.about["request"]["arrays"][name][-1])
        dtype = dtype_of(name)
        return np.frombuffer(record, dtype, size // dtype.itemsize, at).reshape(shape)


def dtype_of(name: str) -> np.dtype:
    """The type of a record's array of this name."""
    return np.dtype(np.uint8 if name == "pixels" else ml_dtypes.bfloat16)


def _payloads(record: bytes) -> dict[str, tuple[int, int]]:
    """Where the arrays of a serialized tf.train.Example lie in it: (start, size) in bytes, by name.

    Protobuf parsers copy every array twice. This one walks the messages by their lengths and copies nothing.
    """
    found = {}
    size, at = _length(record, 0)
    end = at + size
    while at < end:  # an entry of the map of features
        size, at = _length(record, at)
        following = at + size
        size, at = _length(record, at)
        name = record[at : at + size]
        at += size
        if name in _ARRAYS:
            for _ in range(3):  # feature, list of bytes, its only item: the array
                size, at = _length(record, at)
            found[_ARRAYS[name]] = at, size
        at = following
    return found


def _length(record, at):
    """The length of the field whose tag is at `at`, and where its content begins."""
    at += 1
    byte = record[at]
    if byte < 128:
        return byte, at + 1
    size, shift = byte & 127, 7
    while byte > 127:
        at += 1
        byte = record[at]
        size |= (byte & 127) << shift
        shift += 7
    return size, at + 1
