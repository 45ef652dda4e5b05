"""A data set is brought up to date: what did not change is not written again, and the outcome is the same."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import rich.console
import tensorflow_datasets as tfds
from PIL import Image

from sora_jax.cli.main import main
from sora_jax.config.schema import DataSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.data.prepare import cut, shards
from sora_jax.data.prepare.prepare import Options, prepare
from sora_jax.data.records.records import Records
from sora_jax.data.records.verify import verify

SETTINGS = Settings(data=DataSettings(sizes=("32x32",), frames=(1,), validation=0.2))


def picture(path: pathlib.Path, grey: int, caption: str = "a grey square"):
    Image.new("RGB", (32, 32), (grey, grey, grey)).save(path)
    path.with_suffix(".txt").write_text(caption)


@pytest.fixture
def home(tmp_path) -> pathlib.Path:
    """A folder with 20 pictures in v, and a data set of it in d."""
    (tmp_path / "v").mkdir()
    for number in range(20):
        picture(tmp_path / f"v/{number:02}.png", 10 * number, f"square {number}")
    prepare(SETTINGS, tmp_path / "v", tmp_path / "d")
    return tmp_path


def records_of(folder) -> dict[str, tuple]:
    """Split, captions and grey of every record, by source."""
    records = Records(folder, "pixels")
    return {
        clip.source: (split, clip.captions, int(np.mean(records.read(split, index))))
        for split in ("train", "validation")
        for index, clip in enumerate(records.clips(split))
    }


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def inodes(folder) -> set[int]:
    return {path.stat().st_ino for path in folder.glob("*.array_record-*")}


def remove_one(v):
    (v / "07.png").unlink()
    (v / "07.txt").unlink()


CHANGES = {
    "a file is added": lambda v: picture(v / "new.png", 250),
    "a file is removed": remove_one,
    "a caption is changed": lambda v: (v / "03.txt").write_text("quite another caption"),
    "a file is changed": lambda v: picture(v / "05.png", 255, "square 5"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_the_shard_of_a_change_is_written_again(change, home):
    before = inodes(home / "d")
    CHANGES[change](home / "v")
    report = prepare(SETTINGS, home / "v", home / "d")
    # One shard, two where it is halved or joined with its neighbour; of a file that changes sides, those of both.
    assert 1 <= report.shards - report.reused <= 4
    assert len(inodes(home / "d") & before) >= report.reused
    assert "reused" in str(report)
    tokenizer = home / "d/tokenizer.model"
    prepare(SETTINGS, home / "v", home / "whole", Options(tokenizer=tokenizer))
    assert records_of(home / "d") == records_of(home / "whole")
    verify(home / "d", rich.console.Console(quiet=True))


def test_a_run_that_reads_the_data_set_is_not_disturbed(home):
    records = Records(home / "d", "pixels")
    lines = records.clips("train")
    expected = [int(records.read("train", i).mean()) for i in range(len(lines))]
    picture(home / "v/new.png", 250)
    prepare(SETTINGS, home / "v", home / "d")
    again = tfds.builder_from_directory(str(home / "d")).info.splits["train"].num_examples
    assert again == len(lines) + (records_of(home / "d")["new.png"][0] == "train")
    assert [int(records.read("train", i).mean()) for i in range(len(lines))] == expected
    remove_one(home / "v")
    prepare(SETTINGS, home / "v", home / "d")
    assert not list(home.glob("d/clips-*"))  # the first generation is gone, the second is kept for its readers
    assert list(home.glob("d/clips2-*"))
    assert list(home.glob("d/clips3-*"))


def test_without_the_file_that_stopped_it_the_run_goes_on(home, monkeypatch):
    shutil.rmtree(home / "d")
    wanted = 10

    def stops(*arguments, **options):
        if len(list(home.glob("d/.unfinished/*.json"))) > wanted:
            raise MemoryError
        return write_shard(*arguments, **options)

    write_shard = shards.write_shard
    monkeypatch.setattr(shards, "write_shard", stops)
    with pytest.raises(MemoryError):
        prepare(SETTINGS, home / "v", home / "d")
    monkeypatch.undo()
    there = {path.stat().st_ino for path in home.glob("d/.unfinished/*-????????????????")}
    assert len(there) == wanted
    remove_one(home / "v")
    prepare(SETTINGS, home / "v", home / "d")
    assert len(there & inodes(home / "d")) >= wanted - 1
    assert len(records_of(home / "d")) == 19


def test_a_stop_between_the_last_files_is_noticed_and_mended(home):
    picture(home / "v/new.png", 250)
    about = (home / "d/about.json").read_bytes()
    prepare(SETTINGS, home / "v", home / "d")
    (home / "d/about.json").write_bytes(about)  # as if the last of all writes had not come
    with pytest.raises(InputError, match=r"manifest.jsonl is not that of about.json; if `prepare` was stopped"):
        Records(home / "d", "pixels").clips("train")
    prepare(SETTINGS, home / "v", home / "d")
    assert len(records_of(home / "d")) == 21


def test_a_stop_while_it_cleans_up_leaves_no_trace(home):
    before = contents(home / "d")
    (home / "d/.unfinished").mkdir()  # what was left of it, and of the hashes nothing
    (home / "d/.unfinished/tokenizer.model").write_bytes(before["tokenizer.model"])
    (home / "d/.hashes.json").unlink()
    prepare(SETTINGS, home / "v", home / "d")
    assert contents(home / "d") == before
    assert not (home / "d/.unfinished").exists()


def test_videos_that_were_written_just_now_are_hashed_once(home):
    hashes = (home / "d/.hashes.json").read_text()
    assert len(json.loads(hashes)) == 20
    prepare(SETTINGS, home / "v", home / "other")
    assert (home / "other/.hashes.json").read_text() == hashes


def test_an_error_names_the_file(home, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(cut, "probe", broken)
    with pytest.raises(ZeroDivisionError) as error:
        prepare(SETTINGS, home / "v", home / "other")
    assert ".png" in error.value.__notes__[0]


def test_the_outcome_of_every_file_is_listed_without_where_it_lay(home):
    (home / "v/bad.png").write_bytes(b"no picture")
    (home / "v/notes.md").write_text("of other kind")
    (home / "v/gone.png").symlink_to(home / "gone.png")
    prepare(SETTINGS, home / "v", home / "d")
    prepared = json.loads((home / "d/prepared.json").read_text())
    files = {file["name"]: file for file in prepared["files"]}
    assert len(files) == 22
    assert prepared["other"] == ["notes.md"]
    assert files["bad.png"]["clips"] == files["gone.png"]["clips"] == 0
    assert files["bad.png"]["reason"]
    assert files["gone.png"]["reason"]
    assert files["03.png"] == files["03.png"] | {"clips": 1, "reason": "", "notes": []}
    for path in home.glob("d/*"):
        assert str(home).encode() not in path.read_bytes(), path


def test_files_without_a_caption_are_used_or_skipped(home):
    (home / "v/bare.txt").write_text("\n")
    Image.new("RGB", (32, 32)).save(home / "v/bare.png")
    report = prepare(SETTINGS, home / "v", home / "d")
    assert "1 file without a caption" in report.notes
    assert records_of(home / "d")["bare.png"][1] == ("",)
    report = prepare(SETTINGS, home / "v", home / "d", Options(uncaptioned="skip"))
    assert dict(report.skipped) == {"bare.png": "has no caption"}


def test_a_dry_run_tells_what_would_be_written_and_writes_nothing(home, capsys):
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    (home / "v/bad.png").write_bytes(b"no picture")
    settings = ["--config.data.sizes=('32x32','16x16','64x64')", "--config.data.frames=(1,)"]
    assert main(["prepare", f"--videos={home / 'v'}", "--dry-run", *settings]) == 0
    said = capsys.readouterr().err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    assert sorted(row[:3] for row in rows) == [["16x16", "1", "20"], ["32x32", "1", "20"]]
    assert "40 clips of 20 files; nothing was written" in said
    assert "smaller than size 64x64, not cut at it" in said
    assert "bad.png: not a known video or picture: text" in said
    (home / "v/bad.png").unlink()
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before | {
        home / "v": (home / "v").stat().st_mtime_ns
    }
