"""Write a data set: shards of records, then what describes them."""

import dataclasses
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write, copy_file, remove_stale_temporaries, sha256
from sora_jax.data.records.records import SUMS, Clip, dtype_of

# Latents are noise to a compressor: it saves a fifth and costs reading twice the time.
_OPTIONS = {"pixels": "group_size:1", "latents": "group_size:1,uncompressed"}

_THREADS = 16  # that wait for a bucket


def features(arrays: dict[str, tuple[int | None, ...]]) -> tfds.features.FeaturesDict:
    """TFDS's description of a record.

    Args:
      arrays: shapes of its arrays by name; None where clips differ.
    """
    return tfds.features.FeaturesDict(
        {
            name: tfds.features.Tensor(shape=shape, dtype=dtype_of(name).type, encoding="bytes")
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
    """Write records to a shard; the file appears once it is complete.

    Args:
      arrays: as for `features`.
      clips: each with its arrays by these names.
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
                # TFDS orders the features at random; the same clips must make the same bytes.
                parsed = tf_example_pb2.Example.FromString(schema.serialize_example(example))
                writer.write(parsed.SerializeToString(deterministic=True))
                kept.append(clip)
            writer.close()
        except RuntimeError as error:  # array_record's error of a failed write
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
    prepared: dict,
) -> None:
    """Turn complete shards into a data set: name them, describe them to TFDS, write the manifest.

    After an interruption at any point it may be called again; about.json, written last, marks the end. The files
    of each generation have names of their own, so a run that reads the one before is not disturbed.

    Args:
      arrays: as for `features`; the first one names the kind of the data set.
      shards: by split, in order: file, clips, SHA-256. A file that an earlier call has moved may be absent.
      about: content of about.json, with the `generation`.
      prepared: content of prepared.json.
    """
    remove_stale_temporaries(out)
    generation = about["generation"]
    splits, lines, sums = [], [], {}
    for split, parts in shards.items():
        parts = [part for part in parts if part[1]]
        files = [
            out / f"{name_of(generation)}-{split}.array_record-{i:05d}-of-{len(parts):05d}"
            for i in range(len(parts))
        ]
        sizes = _name_shards([path for path, _, _ in parts], files)
        for (_, clips, digest), file in zip(parts, files, strict=True):
            sums[file.name] = digest
            lines += [json.dumps(dataclasses.asdict(clip), ensure_ascii=False) + "\n" for clip in clips]
        if parts:
            splits.append((split, [len(clips) for _, clips, _ in parts], sum(sizes)))
    manifest = "".join(lines).encode()
    about = about | {"manifest": hashlib.sha256(manifest).hexdigest()}
    _describe_to_tfds(out, name_of(generation), arrays, splits)
    with atomic_write(out / "manifest.jsonl") as path:
        path.write_bytes(manifest)
    with atomic_write(out / "prepared.json") as path:
        path.write_text(json.dumps(prepared, indent=1, ensure_ascii=False))
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        others = ".array_record-" in name or name in (SUMS, "about.json") or name[0] == "."
        if not others and path.is_file():
            sums[name] = sha256(path)
    with atomic_write(out / SUMS) as path:
        path.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    with atomic_write(out / "about.json") as path:
        path.write_text(json.dumps(about, indent=1, ensure_ascii=False))
    _remove_generations(out, before=generation - 1)


def _name_shards(paths, files) -> list[int]:
    """Give files their final names, unless they have them already; returns their sizes."""

    def name(path, file):
        if path.exists():
            path.replace(file)
        return file.stat().st_size

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(name, paths, files))


def name_of(generation: int) -> str:
    """The first part of the names of a generation's shards: "clips", "clips2", "clips3" ..."""
    return "clips" if generation == 1 else f"clips{generation}"


def _remove_generations(out, *, before):
    """Remove the shards of generations that no run reads any more; the one before the last is kept."""
    for path in out.glob("clips*-*.array_record-*"):
        number = path.name.removeprefix("clips").partition("-")[0]
        if int(number or 1) < before:
            path.unlink()


def _describe_to_tfds(out, name, arrays, splits):
    """Write TFDS's metadata; splits: (name, records in each shard, size in bytes).

    TFDS looks at the names of all files in the folder, and takes those of another generation for an error: it is
    given a folder with the names of this one alone.
    """
    with tempfile.TemporaryDirectory(prefix="sora_jax-metadata-") as folder:
        here = pathlib.Path(folder)
        for path in out.glob(f"{name}-*.array_record-*"):
            (here / path.name).touch()
        template = tfds.core.ShardedFileTemplate(data_dir=here, dataset_name=name, filetype_suffix="array_record")
        tfds.folder_dataset.write_metadata(
            data_dir=here,
            features=features(arrays),
            split_infos=[
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=lengths,
                    num_bytes=size,
                    filename_template=template.replace(split=split),
                )
                for split, lengths, size in splits
            ],
            description=f"Captioned clips as {next(iter(arrays))}, cut by sora_jax",
            filename_template=template,
            check_data=False,
        )
        for file in ("dataset_info.json", "features.json"):
            copy_file(here / file, out / file)
