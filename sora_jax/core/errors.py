"""Mistakes of input, told in one line."""

import difflib
from collections.abc import Iterable

EXIT_RETRY = (
    75  # the exit code of what went wrong by chance, or was told to end early: start it again (sysexits.h)
)


class InputError(Exception):
    """A mistake that the user can mend: what is wrong, where, what to do.

    The command line prints its text as one line and exits with 2; anything else that is raised is a bug and
    keeps its traceback.
    """

    code = 2


class AbsentError(InputError):
    """Other processes of the run are not there, which the same command may find better when it is tried again."""

    code = EXIT_RETRY


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to append to "unknown ...": the nearest of the known names, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
