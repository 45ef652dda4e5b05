"""Progress where no terminal shows it, and commands that are told to end."""

import io
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from sora_jax.core import progress
from sora_jax.core.console import Console
from sora_jax.core.progress import progress_bar, run_interruptibly

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_a_file_gets_a_plain_line_at_times(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=200)
    with progress_bar(console) as bar:
        task = bar.add_task("a: samples", total=8, numbers="")
        for _ in range(8):
            now[0] += 12
            bar.advance(task)
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith("a: samples: ")]
    assert [line.split(",")[0] for line in lines] == ["a: samples: 3 of 8", "a: samples: 6 of 8"]
    terminal = Console(file=io.StringIO(), width=200, force_terminal=True)
    with progress_bar(terminal) as bar:
        task = bar.add_task("a: samples", total=2, numbers="")
        now[0] += 60
        bar.advance(task)
    assert "a: samples: 1 of 2" not in terminal.file.getvalue()


def test_work_outside_of_python_tells_its_time_and_hands_on_its_result_or_error(monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.3)
    console = Console(file=io.StringIO(), width=200)
    assert run_interruptibly(lambda: time.sleep(1) or 7, console, "compiling") == 7
    assert "compiling: 0 s so far" in console.file.getvalue()
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(lambda: 1 / 0, console, "dividing")
    assert threading.active_count() < 50


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_command_says_how_to_go_on_and_leaves_no_temporary_file(tmp_path, number, code, word):
    """A signal in the middle of a file, and of work outside of Python that can't be stopped."""
    program = f"""
        import ctypes, pathlib, signal, sys
        from sora_jax.cli import main as cli
        from sora_jax.cli.flags import Command
        from sora_jax.core.progress import run_interruptibly
        from sora_jax.core.storage import atomic_write

        def work():
            print("begun", flush=True)
            ctypes.CDLL(None).sleep(60)

        def run(values, console):
            with atomic_write("{tmp_path}/file") as temporary:
                run_interruptibly(work, console, "sleeping")

        # A background job of a shell is born with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.COMMANDS["x"] = Command("x", {{}}, run)
        sys.exit(cli.main(["x"]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)  # the caller waits for the work
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err.splitlines()[-1] == f"sora-jax x: {word}; the same command continues from what is complete"
    assert list(tmp_path.iterdir()) == []
