"""The layouts that people have, and what of them is refused: nothing is lost without a word."""

import io
import json
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from sora_jax.config.schema import DataSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.data.prepare.prepare import prepare
from sora_jax.data.prepare.sources import find_sources
from sora_jax.data.records.records import Records

PICTURE = io.BytesIO()
Image.new("RGB", (32, 32), (90, 90, 90)).save(PICTURE, "PNG")
PNG = PICTURE.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


def lines(*entries) -> bytes:
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


LAYOUTS = {  # files -> captions
    "text beside": (
        {"a.png": PNG, "a.txt": b"A dog.", "sub/b.png": PNG, "sub/b.txt": b"A cat."},
        {"a.png": ("A dog.",), "sub/b.png": ("A cat.",)},
    ),
    "json beside": ({"a.png": PNG, "a.json": b'{"caption": ["One.", "Two."]}'}, {"a.png": ("One.", "Two.")}),
    "imagefolder": (
        {"a.png": PNG, "metadata.csv": b"file_name,text\na.png,A dog.\n"},
        {"a.png": ("A dog.",)},
    ),
    "a table in each sub-folder": (
        {
            "train/x/a.png": PNG,
            "train/x/metadata.jsonl": lines({"file_name": "a.png", "prompt": "A dog."}),
            "train/y/a.png": PNG,
            "train/y/metadata.jsonl": lines({"file_name": "a.png", "text": "A cat."}),
        },
        {"train/x/a.png": ("A dog.",), "train/y/a.png": ("A cat.",)},
    ),
    "webdataset": (
        {
            "000.tar": tar_of(
                {"000.png": PNG, "000.txt": b"A dog.", "001.png": PNG, "001.json": b'{"text": "A cat."}'}
            )
        },
        {"000.tar/000.png": ("A dog.",), "000.tar/001.png": ("A cat.",)},
    ),
    "semicolons and a byte order mark": (
        {"a.png": PNG, "captions.csv": "\ufeffpath;caption\na.png;A dog, brown, runs.\n".encode()},
        {"a.png": ("A dog, brown, runs.",)},
    ),
    "tabs": (
        {"a.png": PNG, "captions.tsv": b"video\tcaption\na.png\tA dog, brown.\n"},
        {"a.png": ("A dog, brown.",)},
    ),
    "line ends of old Macs": (
        {"a.png": PNG, "captions.csv": b"video,caption\ra.png,A dog.\r"},
        {"a.png": ("A dog.",)},
    ),
    "utf-16": (
        {"a.png": PNG, "captions.csv": "video,caption\na.png,Ein Hündchen.\n".encode("utf-16")},
        {"a.png": ("Ein Hündchen.",)},
    ),
    "a field of 200,000 characters": (
        {"a.png": PNG, "captions.csv": b"video,caption\na.png," + b"dog " * 50_000 + b"\n"},
        {"a.png": (("dog " * 50_000).strip(),)},
    ),
    "line separators within a caption": (
        {"a.png": PNG, "captions.jsonl": '{"video": "a.png", "caption": "A\u2028dog\u0085runs."}\n'.encode()},
        {"a.png": ("A dog runs.",)},
    ),
    "a quoted line break": (
        {"a.png": PNG, "captions.csv": b'video,caption\na.png,"A dog\nthat ""runs""."\n'},
        {"a.png": ('A dog that "runs".',)},
    ),
}
REFUSED = {
    "an unquoted comma": (
        b"video,caption\na.png,A dog, brown\n",
        "captions.csv, line 2: 3 fields, but the header has 2; put a caption that holds ',' in quotation marks",
    ),
    "an unclosed quote": (
        b'video,caption\na.png,"A dog\nb.png,A cat\n',
        "captions.csv, line 2: unexpected end of data; is a quotation mark not closed?",
    ),
    "a quote that closes in a later line": (
        b'video,caption\na.png,"A dog\nb.png,"A cat"\n',
        "captions.csv, line 2: ",
    ),
    "no header": (b"a.png,A dog\n", "line 1: the header 'a.png,A dog' must name the file and its caption"),
    "a byte that is not UTF-8": (b"video,caption\na.png,caf\xe9\n", "line 2: byte 0xe9 at offset 23 is not UTF-8"),
}


def fill(folder: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read(layout, tmp_path):
    files, expected = LAYOUTS[layout]
    found = find_sources(fill(tmp_path, files))
    assert {source.name: source.captions for source in found.sources} == expected
    assert found.skipped == found.other == []
    for source in found.sources:
        with source.opened() as path:
            assert path.read_bytes() == PNG


@pytest.mark.parametrize("table", REFUSED)
def test_a_table_that_would_lose_text_is_refused_with_its_line(table, tmp_path):
    data, reason = REFUSED[table]
    with pytest.raises(InputError) as error:
        find_sources(fill(tmp_path, {"a.png": PNG, "b.png": PNG, "captions.csv": data}))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_may_hold_any_letter_or_emoji(tmp_path):
    names = ["naïve.png", "影片.png", "\U0001f468\u200d\U0001f373.png"]
    found = find_sources(fill(tmp_path, dict.fromkeys(names, PNG)))
    assert sorted(source.name for source in found.sources) == sorted(names)


def test_links_to_folders_are_followed_once(tmp_path):
    fill(tmp_path, {"elsewhere/b.png": PNG, "videos/a.png": PNG})
    (tmp_path / "videos/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere")
    assert [source.name for source in find_sources(tmp_path / "videos").sources] == ["a.png", "link/b.png"]


def test_files_that_can_not_be_named_or_stored_are_skipped_alone(tmp_path):
    fill(tmp_path, {"a.png": PNG, "b\x1b[2J.png": PNG, "e.png": PNG, "f.png": PNG})
    (tmp_path / "c\udce9.png").write_bytes(PNG)
    (tmp_path / "captions.jsonl").write_text(
        '{"video": "a.png", "caption": "dog"}\n{"video": "e.png", "caption": "nice \\ud83d"}\n'
    )
    found = find_sources(tmp_path)
    assert [source.name for source in found.sources] == ["a.png"]
    assert dict(found.skipped) == {
        r"b\x1b[2J.png": "its name holds a control character; rename it",
        r"c\udce9.png": "its name is not UTF-8; rename it",
        "e.png": r"its caption was cut in the middle of a character (\ud83d); write it anew",
        "f.png": "captions.jsonl does not name it",
    }


def test_a_damaged_tar_or_caption_skips_its_own_files_alone(tmp_path):
    files = {"a.png": PNG, "a.txt": b"caf\xe9", "b.png": PNG, "b.json": b"{", "c.png": PNG, "c.txt": b"A cat."}
    found = find_sources(fill(tmp_path, {**files, "d.tar": b"no tar"}))
    assert [source.name for source in found.sources] == ["c.png"]
    reasons = dict(found.skipped)
    assert reasons["a.png"].startswith("its caption can't be read: a.txt: line 1: byte 0xe9")
    assert reasons["b.png"].startswith("its caption can't be read: b.json: no JSON")
    assert reasons["d.tar"].startswith("can't be read as a tar")
    assert str(tmp_path) not in str(found.skipped)


def test_records_are_made_of_a_tar(tmp_path):
    fill(tmp_path / "v", LAYOUTS["webdataset"][0])
    data = DataSettings(sizes=("32x32",), frames=(1,), validation=0.0)
    prepare(Settings(data=data), tmp_path / "v", tmp_path / "d")
    records = Records(tmp_path / "d", "pixels")
    assert [clip.source for clip in records.clips("train")] == ["000.tar/000.png", "000.tar/001.png"]
    assert np.abs(records.read("train", 1).astype(int) - 90).max() <= 1
