"""The progress bar of every command."""

import rich.console
import rich.progress


def progress_bar(console: rich.console.Console) -> rich.progress.Progress:
    """A bar with the count, free text from the task's field `numbers`, and the remaining time."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[numbers]}", markup=False),
        rich.progress.TimeRemainingColumn(),
        console=console,
    )
