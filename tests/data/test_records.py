"""Records on disk: TFDS reads back what was written, and nothing is half there."""

import dataclasses
import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from sora_jax.cli.main import main
from sora_jax.core.errors import InputError
from sora_jax.data.records.records import Clip, Records
from sora_jax.data.records.write import finish, write_shard


def clip(split, index, shape=(2, 3, 4, 5)):
    return Clip(
        split=split,
        source=f"{split}{index}.mp4",
        start=index / 16,
        end=index / 16 + 1,
        fps=16.0,
        frames=5,
        height=24,
        width=32,
        shape=shape,
        captions=("Ein Vögelchen.", "A bird.")[: 1 + index % 2],
        tokens=(5, 3)[: 1 + index % 2],
    )


def array_of(kind, index, shape=(2, 3, 4, 5)):
    values = np.random.default_rng(index).normal(size=shape) * 50
    return values.astype(np.uint8 if kind == "pixels" else ml_dtypes.bfloat16)


def write_data_set(out, kind, lengths):
    """A finished data set whose shards have so many records."""
    out.mkdir()
    channels = 3 if kind == "pixels" else 5
    shape, arrays = (2, 3, 4, channels), {kind: (None, None, None, channels)}
    shards, index = {}, 0
    for split, counts in lengths.items():
        shards[split] = []
        for part, count in enumerate(counts):
            numbers = range(index, index + count)
            path = out / f"{split}{part}"
            pairs = [(clip(split, i, shape), {kind: array_of(kind, i, shape)}) for i in numbers]
            shards[split].append((path, *write_shard(path, arrays, iter(pairs))))
            index += count
    finish(out, arrays, shards, {"kind": kind, "generation": 1}, {})
    return shards


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_records_come_back_in_the_order_of_the_manifest(tmp_path, kind):
    write_data_set(tmp_path / "d", kind, {"train": [3, 0, 2], "validation": [1]})
    records = Records(tmp_path / "d", kind)
    channels = 3 if kind == "pixels" else 5
    assert [c.source for c in records.clips("train")] == [f"train{i}.mp4" for i in range(5)]
    for split, first in {"train": 0, "validation": 5}.items():
        for i, line in enumerate(records.clips(split)):
            assert line == clip(split, first + i, (2, 3, 4, channels))
            assert np.array_equal(records.read(split, i), array_of(kind, first + i, (2, 3, 4, channels)))
    names = sorted(path.name for path in (tmp_path / "d").glob("*.array_record-*"))
    assert names == [
        "clips-train.array_record-00000-of-00002",
        "clips-train.array_record-00001-of-00002",
        "clips-validation.array_record-00000-of-00001",
    ]


def test_anybody_can_read_them_with_tfds_and_without_tensorflow(tmp_path):
    write_data_set(tmp_path / "d", "latents", {"train": [2], "validation": []})
    program = f"""
import sys, ml_dtypes, tensorflow_datasets as tfds
source = tfds.builder_from_directory({str(tmp_path / "d")!r}).as_data_source(split="train")
one = source[1]
print(len(source), one["latents"].dtype, one["latents"].shape, [c.decode() for c in one["captions"]],
      one["source"].decode(), float(one["start"]), float(one["fps"]), "tensorflow" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == (
        "2 bfloat16 (2, 3, 4, 5) ['Ein Vögelchen.', 'A bird.'] train1.mp4 0.0625 16.0 False"
    )


def test_finishing_again_after_a_stop_changes_nothing(tmp_path):
    shards = write_data_set(tmp_path / "d", "pixels", {"train": [2, 1], "validation": [1]})
    before = {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()}
    (tmp_path / "d/about.json").unlink()
    finish(tmp_path / "d", {"pixels": (None, None, None, 3)}, shards, {"kind": "pixels", "generation": 1}, {})
    assert {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()} == before


def test_a_data_set_that_is_not_there_is_told(tmp_path):
    write_data_set(tmp_path / "shapes", "pixels", {"train": [1]})
    with pytest.raises(InputError, match="name the folder"):
        Records("", "pixels")
    with pytest.raises(InputError, match="did you mean 'shapes'"):
        Records(tmp_path / "shape", "pixels")
    with pytest.raises(InputError, match="holds pixels, not latents; run `prepare` with --autoencoder"):
        Records(tmp_path / "shapes", "latents")
    with pytest.raises(InputError, match="no clip in its validation split"):
        Records(tmp_path / "shapes", "pixels").clips("validation")
    (tmp_path / "shapes/about.json").unlink()
    with pytest.raises(InputError, match="no finished data set"):
        Records(tmp_path / "shapes", "pixels")


def test_a_full_disk_leaves_no_half_shard(tmp_path):
    program = f"""
import pathlib, resource, signal, sys
sys.path.insert(0, {str(pathlib_parent())!r})
import test_records as t
from sora_jax.data.records.write import write_shard
from sora_jax.core.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
shape = (4, 64, 64, 5)
pairs = ((t.clip("train", i, shape), {{"latents": t.array_of("latents", i, shape)}}) for i in range(40))
try:
    write_shard(pathlib.Path({str(tmp_path)!r}) / "shard", {{"latents": (None, None, None, 5)}}, pairs)
except InputError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "File too large" in run.stdout
    assert "what is complete is kept" in run.stdout
    assert len(run.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def pathlib_parent():
    return __file__.rpartition("/")[0]


def test_the_manifest_is_one_json_object_a_line(tmp_path):
    write_data_set(tmp_path / "d", "pixels", {"train": [2]})
    lines = [json.loads(line) for line in (tmp_path / "d/manifest.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "split": "train",
        "source": "train1.mp4",
        "start": 0.0625,
        "end": 1.0625,
        "fps": 16.0,
        "frames": 5,
        "height": 24,
        "width": 32,
        "shape": [2, 3, 4, 3],
        "captions": ["Ein Vögelchen.", "A bird."],
        "tokens": [5, 3],
    }
    info = tfds.builder_from_directory(str(tmp_path / "d")).info
    assert info.splits["train"].num_examples == 2


def verified(folder, capsys):
    """Exit code of `data verify`, and what it said."""
    code = main(["data", "verify", f"--data={folder}"])
    return code, capsys.readouterr().err


def test_verify_names_the_shards_and_records_that_are_broken(tmp_path, capsys):
    write_data_set(tmp_path / "d", "latents", {"train": [3, 2], "validation": [1]})
    folder = tmp_path / "d"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, check=True)
    code, said = verified(folder, capsys)
    assert code == 0
    assert "7 files" in said
    assert "all as they were written" in said
    second = folder / "clips-train.array_record-00001-of-00002"
    whole = second.read_bytes()

    def told(data):
        second.write_bytes(data)
        code, said = verified(folder, capsys)
        assert code == 2
        assert f"--data: 1 of the 7 files of {folder} are broken, {second.name} for one; " in said
        return said

    zeroed = whole.replace(array_of("latents", 4).tobytes()[:64], bytes(64))
    assert zeroed != whole
    assert f"{second.name}: record 1 (train4.mp4 from 0.25 s) can't be read, Corrupted" in told(zeroed)
    assert f"{second.name}: can't be opened, " in (said := told(whole[: len(whole) // 2]))
    assert "its 2 records are lost" in said
    # A byte that no record needs.
    assert "not what was written, though its 2 records can be read" in told(whole[:-1] + b"x")
    second.unlink()
    (folder / "manifest.jsonl").write_text("")
    code, said = verified(folder, capsys)
    assert code == 2
    assert f"{second.name}: is missing\n" in said
    assert "manifest.jsonl: is not what was written\n" in said
    assert "2 of the 7 files" in said
    (folder / "SHA256SUMS").unlink()
    assert "has no SHA256SUMS; prepare it anew" in verified(folder, capsys)[1]
    assert "no folder" in verified(tmp_path / "e", capsys)[1]


def test_records_are_the_same_bytes_each_time(tmp_path):
    program = f"""
import pathlib, sys
sys.path.insert(0, {str(pathlib_parent())!r})
import test_records as t
t.write_data_set(pathlib.Path(sys.argv[1]), "latents", {{"train": [3]}})
"""
    for name in ("a", "b", "c"):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], check=True)
    assert len({(tmp_path / name / "SHA256SUMS").read_bytes() for name in "abc"}) == 1


def test_every_array_is_what_tfds_reads(tmp_path):
    arrays = {"latents": (None, None, None, 5), "given": (None, None, None, 5), "image": (None, 7)}
    made = {name: array_of("latents", i, shape) for i, (name, shape) in enumerate(
        {"latents": (2, 3, 4, 5), "given": (2, 3, 4, 5), "image": (9, 7)}.items())}  # fmt: skip
    line = dataclasses.replace(clip("train", 3), source="latents/value", captions=("x" * 300,), tokens=(9,))
    shard = (tmp_path / "d/train", *write_shard(tmp_path / "d/train", arrays, [(line, made)]))
    about = {"kind": "latents", "request": {"arrays": {name: list(shape) for name, shape in arrays.items()}}}
    finish(tmp_path / "d", arrays, {"train": [shard]}, about | {"generation": 1}, {})
    read = Records(tmp_path / "d", "latents").read_all("train", 0)
    others = tfds.builder_from_directory(str(tmp_path / "d")).as_data_source(split="train")[0]
    assert read.keys() == made.keys()
    for name, array in made.items():
        assert np.array_equal(read[name], array)
        assert np.array_equal(others[name], array)
    assert others["source"] == b"latents/value"
