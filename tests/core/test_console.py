"""The terminal never gets markup or control characters out of names and prompts."""

import io

import pytest
import rich.table

from sora_jax.cli.main import main
from sora_jax.core.console import Console
from sora_jax.core.errors import printable
from sora_jax.core.progress import progress_bar


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\x1b[31mred.mp4", r"a\x1b[31mred.mp4"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x9b2J", r"\x9b2J"),
        ("not UTF-8 \udce9", r"not UTF-8 \udce9"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("für 猫 👩\u200d🚀 [bold]", "für 猫 👩\u200d🚀 [bold]"),
    ],
)
def test_control_characters_are_escaped_and_all_else_stays(text, shown):
    assert printable(text) == shown


def test_a_console_prints_what_it_is_given():
    file = io.StringIO()
    Console(file=file, force_terminal=True, width=80).print("[red]a[/red] [/x] \x1b]0;title\x07\nb")
    assert file.getvalue() == "[red]a[/red] [/x] \\x1b]0;title\\x07\nb\n"


def test_a_console_neither_wraps_text_nor_replaces_emoji_codes():
    file, text = io.StringIO(), "say :smile: " + "x" * 300
    Console(file=file, width=80).print(text)
    assert file.getvalue() == text + "\n"


def test_cells_of_tables_and_progress_bars_are_text_too():
    file = io.StringIO()
    console = Console(file=file, width=120)
    table = rich.table.Table("[/head]")
    table.add_row("a [red] cell[/]")
    console.print(table)
    with progress_bar(console) as bar:
        bar.add_task("folder[/x]", total=1, numbers="[/n]")
    assert all(text in file.getvalue() for text in ("[/head]", "a [red] cell[/]", "folder[/x]", "[/n]"))


def test_an_error_with_a_name_of_control_characters_is_one_line(capsys):
    assert main(["train", "--config=a\x1b[2J\n.py"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "\x1b" not in told and r"a\x1b[2J\n.py" in told
