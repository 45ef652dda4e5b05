"""Errors of input, which the command line prints in one line."""

import difflib
import sys
import unicodedata
from collections.abc import Iterable

EXIT_RETRY = 75  # exit code after a temporary failure or an early stop: run the same command again (sysexits.h)

# Control characters, lone surrogates and format characters, among them those that reverse the direction of text.
_HIDDEN = {"Cc", "Cs", "Cf"}
_JOINERS = "\u200c\u200d"  # format characters that emoji and several scripts need


class InputError(Exception):
    """An error that the user can mend: what is wrong, where, and what to type instead.

    The command line prints its text in one line and exits with `code`. Any other exception is a bug and keeps its
    traceback.
    """

    code = 2


class AbsentError(InputError):
    """Other processes of the run are absent; the same command may find them later."""

    code = EXIT_RETRY


class NotGoodEnough(InputError):
    """Everything ran, and the result is below what was asked for."""

    code = 3


class Terminated(KeyboardInterrupt):
    """SIGTERM, to a command that does not save on it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to append to "unknown ...": the most similar known name, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def printable(text: str, *, keep: str = "") -> str:
    """The text with control characters escaped, so that none of them reaches the terminal.

    Args:
      keep: characters to leave as they are, such as a newline.
    """
    return "".join(
        char if char in keep or char in _JOINERS or unicodedata.category(char) not in _HIDDEN else escaped(char)
        for char in text
    )


def escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def print_error(program: str, error: object):
    """Print an error in one line on standard error."""
    print(f"{program}: {printable(str(error))}", file=sys.stderr, flush=True)
