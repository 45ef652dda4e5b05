"""Files of prompts, as people save them."""

import codecs
import io
import types

import pytest

from sora_jax.cli.prompt_files import read_lines, read_prompts
from sora_jax.core.console import Console
from sora_jax.core.errors import InputError

TEXT = "a red circle\nein blauer Kreis, größer\n猫が走る\n"
LINES = TEXT.splitlines()


class Values(dict):
    """The value of one flag."""

    def __init__(self, path):
        super().__init__(prompts=types.SimpleNamespace(value=str(path)))


def write(tmp_path, data, name="prompts.txt"):
    (tmp_path / name).write_bytes(data)
    return Values(tmp_path / name), Console(file=io.StringIO(), width=200)


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.strip().encode(),
    ],
    ids=["utf-8", "utf-8 with a mark", "utf-16", "utf-16 big-endian", "cr lf", "no last line end"],
)
def test_prompts_of_any_unicode_encoding_are_read(tmp_path, data):
    values, console = write(tmp_path, data)
    assert read_lines(values, "prompts", console) == LINES and console.file.getvalue() == ""


def test_only_a_line_feed_ends_a_prompt_and_empty_lines_are_counted(tmp_path):
    values, console = write(tmp_path, "a cat\u2028asleep\n\n \na dog\n".encode())
    assert read_lines(values, "prompts", console) == ["a cat\u2028asleep", "a dog"]
    assert "2 empty lines are skipped" in console.file.getvalue()


@pytest.mark.parametrize(
    "data, words",
    [
        (b"a red circle\nn\xe4he\n", "line 2: byte 0xe4 at offset 14 is not UTF-8; save the file as UTF-8"),
        (codecs.BOM_UTF16_LE + b"a\x00b", "line 1: byte 0x62 at offset 4 is not UTF-16"),
        (b"\n\n", "no prompt in it"),
    ],
)
def test_a_file_that_is_not_text_is_told_with_the_place(tmp_path, data, words):
    values, console = write(tmp_path, data)
    with pytest.raises(InputError, match=words) as raised:
        read_lines(values, "prompts", console)
    assert str(raised.value).startswith(f"--prompts={tmp_path}")


def test_json_lines_have_settings_of_each_prompt(tmp_path):
    data = (
        b'{"prompt": "a cat"}\n\n{"prompt": "a dog", "seed": 18446744073709551615, "frames": 1, "size": "64x64"}\n'
    )
    values, console = write(tmp_path, data, "prompts.jsonl")
    assert read_prompts(values, "prompts", console) == [
        ("a cat", {}),
        ("a dog", {"seed": 2**64 - 1, "frames": 1, "size": "64x64"}),
    ]


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"prompt": "a"', r"line 2: not JSON"),
        ('["a"]', r'line 2: an object such as \{"prompt": "a cat", "seed": 7\} is needed'),
        ('{"prompt": 3}', "line 2: an object such as"),
        ('{"prompt": "a", "sede": 1}', "line 2: no such key 'sede', did you mean 'seed'?"),
        ('{"prompt": "a", "seed": "1"}', "line 2: seed: '1' is no whole number"),
        ('{"prompt": "a", "frames": true}', "line 2: frames: True is no whole number"),
    ],
)
def test_a_line_that_is_no_prompt_is_told_with_its_number(tmp_path, line, words):
    values, console = write(tmp_path, f'{{"prompt": "a"}}\n{line}\n'.encode(), "prompts.jsonl")
    with pytest.raises(InputError, match=words):
        read_prompts(values, "prompts", console)
