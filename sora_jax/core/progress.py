"""The progress of every command: a bar in a terminal, a plain line at times in a file."""

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import rich.console
import rich.progress

from sora_jax.core.errors import Terminated

LINE_SECONDS = 30  # between the lines in a file

Result = TypeVar("Result")


class _Progress(rich.progress.Progress):
    """A bar; where the console is no terminal, which shows no bar before its end, a line at times."""

    def __init__(self, *columns, console: rich.console.Console):
        super().__init__(*columns, console=console)
        self._last_line = time.monotonic()

    def advance(self, task_id, advance=1):
        super().advance(task_id, advance)
        self._print_line(task_id)

    def update(self, task_id, **changes):
        super().update(task_id, **changes)
        self._print_line(task_id)

    def _print_line(self, task_id):
        now = time.monotonic()
        if self.console.is_terminal or now - self._last_line < LINE_SECONDS:
            return
        self._last_line = now
        task = self._tasks[task_id]
        left = f"{task.time_remaining:,.0f} s left" if task.time_remaining else ""
        total = f"{task.completed:,.4g} of {task.total:,.4g}" if task.total else ""
        parts = ", ".join(part for part in (total, task.fields.get("numbers", ""), left) if part)
        self.console.print(f"{task.description}: {parts}", soft_wrap=True)


def progress_bar(console: rich.console.Console) -> rich.progress.Progress:
    """A bar with the count, free text from the task's field `numbers`, and the remaining time."""
    return _Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[numbers]}", markup=False),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )


def run_interruptibly(work: Callable[[], Result], console: rich.console.Console, text: str) -> Result:
    """The result of work that spends minutes outside of Python, such as compiling.

    Python handles Ctrl-C between its own instructions only, so the work runs in a thread of its own. After an
    interruption the process ends as soon as its error is reported: the work can't be stopped.

    Args:
      text: what is being done; printed at times if the console is no terminal.
    """
    done: list = []

    def run():
        try:
            done.append((work(), None))
        except BaseException as error:  # raised again below, in the caller's thread
            done.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    began = last = time.monotonic()
    try:
        while thread.is_alive():
            thread.join(0.2)
            if not console.is_terminal and time.monotonic() - last > LINE_SECONDS:
                last = time.monotonic()
                console.print(f"{text}: {last - began:,.0f} s so far", soft_wrap=True)
    except KeyboardInterrupt as error:
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        atexit.register(os._exit, 128 + number)
        raise
    result, error = done[0]
    if error:
        raise error
    return result
