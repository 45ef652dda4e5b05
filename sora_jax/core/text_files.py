"""Text files of users: UTF-8 with or without a byte order mark, or UTF-16 with one."""

import codecs
import pathlib

from sora_jax.core.errors import InputError

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: pathlib.Path, where: str) -> str:
    """The text of a file.

    Args:
      where: the place of the file's name in errors, such as "--prompts=FILE".
    Raises: InputError if it is absent, or not in one of these encodings; names the line of the first bad byte.
    """
    if not path.is_file():
        raise InputError(f"{where}: no such file")
    return decode_text(path.read_bytes(), where)


def decode_text(data: bytes, where: str) -> str:
    """The text of a file's bytes; `where` and errors: as for `read_text`."""
    encoding = "utf-16" if data.startswith(UTF_16) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise InputError(
            f"{where}: line {line}: byte {data[error.start]:#04x} at offset {error.start} is not {name}; "
            f"save the file as UTF-8"
        ) from None
