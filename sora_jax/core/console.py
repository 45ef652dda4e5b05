"""What the terminal shows: text of users and files is printed as it is, without markup or control characters."""

import sys
import unicodedata

import rich.console

# Control characters, lone surrogates and format characters, among them those that reverse the direction of text.
_HIDDEN = {"Cc", "Cs", "Cf"}
_JOINERS = "\u200c\u200d"  # format characters that emoji and several scripts need


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


class Console(rich.console.Console):
    """A console that prints strings as they are: no markup, no emoji codes, control characters escaped.

    It does not wrap them, so that a line of text stays one line in a file.
    """

    def __init__(self, **options):
        super().__init__(**({"markup": False, "emoji": False, "highlight": False} | options))

    def print(self, *objects, **options):
        if all(isinstance(item, str) for item in objects):
            options = {"soft_wrap": True} | options
        super().print(*objects, **options)

    def render_str(self, text: str, **options):
        return super().render_str(printable(text, keep="\n\t"), **options)


def print_error(program: str, error: object):
    """Print an error in one line on standard error."""
    print(f"{program}: {printable(str(error))}", file=sys.stderr, flush=True)
