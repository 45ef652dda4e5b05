"""What the terminal shows: text of users and files is printed as it is, without markup or control characters."""

import rich.console

from sora_jax.core.errors import printable


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
