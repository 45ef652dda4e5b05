"""Files that are there in full or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from sora_jax.core.errors import InputError, did_you_mean

# What the user can mend; any other OSError is a bug and keeps its traceback.
USER_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "that disk is read-only",
    errno.ENOTDIR: "a file stands where a folder should be",
    errno.EEXIST: "a file stands where a folder should be",
}


_ENDS = 2**16  # bytes at both ends of a file by which its content is known


@contextlib.contextmanager
def explain_os_errors(path: str | os.PathLike) -> Iterator[None]:
    """Tell in one line what the user can mend of the system's errors while `path` is being written."""
    try:
        yield
    except OSError as error:
        if error.errno not in USER_ERRORS:
            raise
        raise InputError(f"{path}: can't be written, {USER_ERRORS[error.errno]}") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary file to write, which takes the place of `path` at the end, or vanishes if an error comes first.

    Args:
      path: the file to write; its folder is made if it is not there. A file that stands there is kept until the
        new one is complete and on the disk.
    Raises: InputError if it can't be written, e.g. because the disk is full.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it")
    # Hidden, and with the suffix kept: writers choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with explain_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # as the umask says: some writers replace the file by one of their owner's alone
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def remove_stale_temporaries(folder: pathlib.Path):
    """Remove the temporary files that `replacing` has left in a folder because its process was killed."""
    for path in folder.glob(".*"):
        if path.is_file() and re.fullmatch(r"\..+\.\d+(\.\w+)?", path.name):
            path.unlink()


def sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: str | os.PathLike) -> str:
    """A hash of a file's size and both its ends: quick, and another for any video that is not a copy."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return hashlib.sha256(size.to_bytes(8, "big") + head + file.read()).hexdigest()[:16]


def weights_digest(folder: str | os.PathLike) -> str:
    """A hash of a folder's safetensors, by their `identity`; of no folder, "", it is that of no files."""
    files = sorted(pathlib.Path(folder).glob("*.safetensors")) if folder else []
    return digest([content_hash(file) for file in files])


def digest(value) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def read_object(path: pathlib.Path) -> dict:
    """The object in a JSON file. Raises: InputError if it is absent, no JSON or no object."""
    if not path.is_file():
        there = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file" + (f", {did_you_mean(path.name, there)}" if there else ""))
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: no JSON ({error}); copy it anew from where it comes from") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: an object is needed, not {type(values).__name__}")
    return values


def copy_files(source: pathlib.Path, target: pathlib.Path):
    """Copy the files of a folder into another one, each whole or not at all.

    Raises: InputError if one can't be written, e.g. because the disk is full.
    """
    for file in sorted(path for path in source.iterdir() if path.is_file()):
        with atomic_write(target / file.name) as temporary:
            shutil.copyfile(file, temporary)
