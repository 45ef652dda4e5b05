"""Captions: three ways to give them, one way to be told what is wrong."""

import json
import pathlib

import pytest

from sora_jax.core.errors import InputError
from sora_jax.data.prepare.sources import find_sources


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A folder with files that are found by name alone; nothing here opens them."""
    for name in ["b.mp4", "a.MKV", "sub/c.webm", "d.png", "notes.md", ".hidden.mp4"]:
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "videos"


def captions_of(sources):
    return {source.name: source.captions for source in sources}


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_json_lines_give_every_wording(folder):
    write_lines(
        folder / "captions.jsonl",
        {"video": "sub/c.webm", "caption": " A  cat. ", "fps": 3},
        {"video": "b.mp4", "long_caption": "A dog that runs.", "caption": "A dog.", "short_caption": "A dog."},
    )
    assert captions_of(find_sources(folder).sources) == {
        "b.mp4": ("A dog.", "A dog that runs."),
        "sub/c.webm": ("A cat.",),
    }


def test_the_real_captions_are_read(clips):
    sources = find_sources(clips).sources
    assert [source.name for source in sources] == sorted(source.name for source in sources)
    assert len(sources) == 7
    assert all(len(source.captions) == 2 and source.path.is_file() for source in sources)


def test_csv_with_a_header_is_read(folder):
    (folder / "captions.csv").write_text(
        '\ufeffvideo,caption,long_caption\nb.mp4,"A dog, or\ntwo.",Long.\nd.png,A drawing.,\n', encoding="utf-8"
    )
    assert captions_of(find_sources(folder).sources) == {
        "b.mp4": ("A dog, or two.", "Long."),
        "d.png": ("A drawing.",),
    }


def test_text_files_beside_the_videos_are_read(folder):
    (folder / "b.txt").write_text("A dog\nruns.\n")
    (folder / "sub/c.txt").write_text("Ein Vögelchen.")
    assert captions_of(find_sources(folder).sources) == {
        "a.MKV": (),
        "b.mp4": ("A dog runs.",),
        "d.png": (),
        "sub/c.webm": ("Ein Vögelchen.",),
    }


def test_a_named_file_of_captions_is_used(folder, tmp_path):
    write_lines(folder / "captions.jsonl", {"video": "b.mp4", "caption": "Not this one."})
    write_lines(tmp_path / "mine.jsonl", {"video": "b.mp4", "caption": "This one."})
    assert captions_of(find_sources(folder, tmp_path / "mine.jsonl").sources) == {"b.mp4": ("This one.",)}


def error_of(folder, captions=None):
    with pytest.raises(InputError) as error:
        find_sources(folder, captions)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_or_empty_folder_is_told(folder, tmp_path):
    assert "no such folder, did you mean 'videos'?" in error_of(tmp_path / "vidoes")
    assert "is a file, not a folder" in error_of(folder / "b.mp4")
    (tmp_path / "empty").mkdir()
    assert "no video or picture in it, it is empty" in error_of(tmp_path / "empty")
    (tmp_path / "empty/readme.md").write_text("x")
    assert "no video or picture in it, it holds .md" in error_of(tmp_path / "empty")


def test_captions_that_name_absent_files_are_told(folder):
    rows = [{"video": name, "caption": "x"} for name in ("b.mp4", "sub/d.webm", "e.mp4")]
    write_lines(folder / "captions.jsonl", *rows)
    error = error_of(folder)
    assert "captions.jsonl, line 2: no file 'sub/d.webm'" in error
    assert "(and 1 more); did you mean 'sub/c.webm'?" in error


def test_broken_captions_are_told_with_their_line(folder):
    file = folder / "captions.jsonl"
    good = json.dumps({"video": "b.mp4", "caption": "x"}) + "\n"
    for text, reason in [
        (good + "{'video': 1}\n", "line 2: no JSON object (Expecting property name"),
        (good + "\n[1]\n", "line 3: no JSON object but '[1]'"),
        (
            '{"video": "b.mp4", "captoin": "x"}\n',
            "line 1: needs 'caption' or 'text', a text; did you mean 'captoin'?",
        ),
        ('{"video": 3, "caption": "x"}\n', "line 1: needs 'video' or 'file_name', the name of a file"),
        (
            '{"video": "b.mp4", "caption": "x", "long_caption": 3}\n',
            "line 1: 'long_caption' is a caption that is no text",
        ),
        (good + good, "line 2: b.mp4 has its caption in line 1 already"),
        ("\n", "no caption in it"),
    ]:
        file.write_text(text)
        assert reason in error_of(folder)
    file.write_bytes(good.encode() + b"\xff\xfe\n")
    assert "line 2: byte 0xff at offset 35 is not UTF-8" in error_of(folder)


def test_a_file_of_captions_that_is_not_there_is_told(folder, tmp_path):
    write_lines(tmp_path / "mine.jsonl", {"video": "b.mp4", "caption": "x"})
    assert "no such file, did you mean 'mine.jsonl'?" in error_of(folder, tmp_path / "min.jsonl")
    (tmp_path / "mine.txt").write_text("x")
    assert "must be .jsonl" in error_of(folder, tmp_path / "mine.txt")
