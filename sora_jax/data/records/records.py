"""A prepared data set on disk: records that TFDS reads, and a manifest with one line for each.

    clips-train.array_record-00000-of-00004 ...   the records; a record is one clip
    clips-validation.array_record-00000-of-00001  those of the held-out sources
    dataset_info.json, features.json              what TFDS needs to know
    manifest.jsonl                                one line per record, in order: train, then validation
    tokenizer.model                               learned from the captions, or the one that was given
    autoencoder/                                  a copy of what made the latents (latents only)
    SHA256SUMS                                    of all of these files, for `sora-jax data verify` or sha256sum -c
    about.json                                    what was asked for, what came of it; written last

Written without TensorFlow and readable by `tfds.builder_from_directory(...).as_data_source(split)`.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable

import ml_dtypes  # registers numpy's bfloat16, without which TFDS asks for TensorFlow
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import atomic_write, remove_stale_temporaries, sha256

SPLITS = ("train", "validation")
KINDS = ("pixels", "latents")
SUMS = "SHA256SUMS"

_NAME = "clips"
# What TFDS calls the bytes of an array: with its shape beside it where two dimensions or more are free, else bare.
_ARRAYS = {f"{name}/value".encode(): name for name in (*KINDS, "given")} | {b"image": "image", b"text": "text"}
# Latents are noise to a compressor: it saves a fifth and costs reading twice the time.
_OPTIONS = {"pixels": "group_size:1", "latents": "group_size:1,uncompressed"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """One line of the manifest.

    split: "train" or "validation".
    source: name of the file it was cut from, inside the folder of videos.
    start, end: its span there, in seconds.
    fps: frames a second.
    frames, height, width: in pixels.
    shape: of the record's array: [F, H, W, 3] pixels or [f, h, w, C] latents.
    captions: one or more wordings; the first is the one used for validation.
    tokens: length of each caption in tokens, its end token included, uncut.
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
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


class Records:
    """A finished data set, for reading.

    Args:
      path: the folder that `prepare` wrote.
      kind: "pixels" or "latents", what its records must be; None: either.
      where: what to call the path in errors.
    Raises: InputError if it is absent, unfinished or of the other kind.
    """

    def __init__(self, path: str | pathlib.Path, kind: str | None, *, where: str = "config.data.path"):
        if not str(path):
            raise InputError(f"{where}: name the folder that `prepare` wrote")
        self.path = pathlib.Path(path)
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
        """SHA-256 of its files by name, but for about.json.

        Raises: InputError if it was prepared before there were any.
        """
        if not (self.path / SUMS).is_file():
            raise InputError(f"{self.path} has no {SUMS}; prepare it anew")
        return dict(reversed(line.split("  ", 1)) for line in (self.path / SUMS).read_text().splitlines())

    def clips(self, split: str) -> list[Clip]:
        """The manifest's lines of this split; clip i describes record i.

        Raises: InputError if there is none.
        """
        clips = self._of_split.get(split)
        if not clips:
            raise InputError(
                f"{self.path}: no clip in its {split} split; prepare more videos, or change config.data.validation"
            )
        return clips

    @functools.cached_property
    def _of_split(self):
        return {split: [clip for clip in self.manifest if clip.split == split] for split in SPLITS}

    @functools.cached_property
    def manifest(self) -> list[Clip]:
        with (self.path / "manifest.jsonl").open() as lines:
            return [Clip.from_dict(json.loads(line)) for line in lines]

    @functools.cached_property
    def _shards(self):
        """For each split (its records, the numbers of its shards' first records, the shards' names)."""
        held = {}
        for split, info in tfds.builder_from_directory(str(self.path)).info.splits.items():
            parts = info.file_instructions
            first = np.cumsum([0, *(part.take for part in parts)])
            held[split] = ArrayRecordDataSource(parts), first, [pathlib.Path(part.filename).name for part in parts]
        return held

    def read(self, split: str, index: int) -> np.ndarray:
        """One record's array: pixels uint8 [F, H, W, 3] or latents bfloat16 [f, h, w, C]."""
        return self.read_all(split, index)[self.about["kind"]]

    def read_all(self, split: str, index: int) -> dict[str, np.ndarray]:
        """The arrays of a record by name, which can't be written to.

        Raises: InputError if the record is broken; names its shard.
        """
        source, first, names = self._shards[split]
        shape = self.clips(split)[index].shape
        try:
            spans = _payloads(record := source[index])
            return {
                name: np.frombuffer(record, _dtype(name), size // _dtype(name).itemsize, start).reshape(
                    shape if name in (*KINDS, "given") else (-1, self.about["request"]["arrays"][name][-1])
                )
                for name, (start, size) in spans.items()
            }
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            shard = int(np.searchsorted(first, index, side="right")) - 1
            raise InputError(
                f"{self.path / names[shard]}: record {index - first[shard]} can't be read, "
                f"{str(error).partition(';')[0]}; `sora-jax data verify --data={self.path}` "
                f"tells all that is broken"
            ) from error


def _dtype(name):
    return np.dtype(np.uint8 if name == "pixels" else ml_dtypes.bfloat16)


def _payloads(record: bytes) -> dict[str, tuple[int, int]]:
    """Where the arrays of a serialized tf.train.Example lie in it: (start, size) in bytes, by name.

    As protobuf's own parser copies every array twice, it takes half as long again as reading a record of a
    megabyte. Here nothing is copied: messages are walked by their tags and lengths.
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
            for _ in range(3):  # its value, a list of bytes, whose only item is the array
                size, at = _length(record, at)
            found[_ARRAYS[name]] = at, size
        at = following
    return found


def _length(record, at):
    """The length that follows the tag of a field, and where the field begins."""
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


def features(arrays: dict[str, tuple[int | None, ...]]) -> tfds.features.FeaturesDict:
    """What a record holds; `arrays` are the shapes of its arrays by name, None where clips differ."""
    return tfds.features.FeaturesDict(
        {
            name: tfds.features.Tensor(shape=shape, dtype=_dtype(name).type, encoding="bytes")
            for name, shape in arrays.items()
        }
        | {
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "source": tfds.features.Text(),
            "start": np.float64,
            "fps": np.float32,
        }
    )


def write_shard(
    path: pathlib.Path,
    arrays: dict[str, tuple[int | None, ...]],
    clips: Iterable[tuple[Clip, dict[str, np.ndarray]]],
) -> tuple[list[Clip], str]:
    """Write records to a shard, whose name appears once it is whole.

    Args:
      arrays: as `features` takes them; clips: each with its arrays by these names.
    Returns: the clips of its records, and its SHA-256.
    Raises: InputError if the disk is full.
    """
    kept: list[Clip] = []
    schema = features(arrays)
    with atomic_write(path) as partial:
        try:
            writer = array_record_module.ArrayRecordWriter(str(partial), _OPTIONS[next(iter(arrays))])
            for clip, made in clips:
                example = {
                    **made,
                    "captions": list(clip.captions),
                    "source": clip.source,
                    "start": clip.start,
                    "fps": clip.fps,
                }
                # TFDS leaves the order of the features to chance; the same clips are to make the same bytes.
                made_by_chance = tf_example_pb2.Example.FromString(schema.serialize_example(example))
                writer.write(made_by_chance.SerializeToString(deterministic=True))
                kept.append(clip)
            writer.close()
        except RuntimeError as error:  # how array_record tells of a write that failed
            reason = str(error).partition(";")[0]
            raise InputError(
                f"{path}: {reason}; make room and run this again, what is complete is kept"
            ) from error
        digest = sha256(partial)
    return kept, digest


def finish(
    out: pathlib.Path,
    arrays: dict[str, tuple[int | None, ...]],
    shards: dict[str, list[tuple[pathlib.Path, list[Clip], str]]],
    about: dict,
):
    """Make a data set of finished shards: name them, describe them to TFDS, write the manifest.

    May be repeated after a stop at any point; about.json, written last, marks the end.

    Args:
      arrays: as `features` takes them; the first is what the data set is called.
      shards: for each split, its shards in order with their clips and SHA-256; each is where `write_shard` put
        it, or already where an earlier call has moved it.
      about: what about.json says.
    """
    remove_stale_temporaries(out)
    splits, lines, sums = [], [], {}
    for split, parts in shards.items():
        parts = [part for part in parts if part[1]]
        template = tfds.core.ShardedFileTemplate(
            data_dir=out, dataset_name=_NAME, split=split, filetype_suffix="array_record"
        )
        size = 0
        for i, (path, clips, digest) in enumerate(parts):
            final = out / f"{_NAME}-{split}.array_record-{i:05d}-of-{len(parts):05d}"
            if path.exists():
                path.replace(final)
            size += final.stat().st_size
            sums[final.name] = digest
            lines += [json.dumps(dataclasses.asdict(clip), ensure_ascii=False) + "\n" for clip in clips]
        if parts:
            lengths = [len(clips) for _, clips, _ in parts]
            splits.append(
                tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)
            )
    tfds.folder_dataset.write_metadata(
        data_dir=out,
        features=features(arrays),
        split_infos=splits,
        description=f"Captioned clips as {next(iter(arrays))}, cut by sora_jax",
        filename_template=template,
        check_data=False,
    )
    with atomic_write(out / "manifest.jsonl") as path:
        path.write_text("".join(lines))
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if path.is_file() and name not in sums and name not in (SUMS, "about.json") and name[0] != ".":
            sums[name] = sha256(path)
    with atomic_write(out / SUMS) as path:
        path.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    with atomic_write(out / "about.json") as path:
        path.write_text(json.dumps(about, indent=1, ensure_ascii=False))
