"""Errors of input, which the command line prints in one line."""

import difflib
from collections.abc import Iterable

EXIT_RETRY = 75  # exit code after a temporary failure or an early stop: run the same command again (sysexits.h)


class InputError(Exception):
    """An error that the user can mend: what is wrong, where, and what to type instead.

    The command line prints its text in one line and exits with `code`. Any other exception is a bug and keeps its
    traceback.
    """

    code = 2


class AbsentError(InputError):
    """Other processes of the run are absent; the same command may find them later."""

    code = EXIT_RETRY


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to append to "unknown ...": the most similar known name, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
