"""Files on a disk or in a bucket: written whole or not at all, and known by hashes of their content.

`as_path` makes the path that a user names: a pathlib.Path on a disk, a BucketPath for gs:// and s3://. Both have
pathlib's methods, so annotations say pathlib.Path for either. What only a disk can do (links, locks, appending,
renaming a folder, files for other libraries) has a function here that does it in a bucket too.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.local_cache import local_cache

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from sora_jax.core.buckets import BucketPath

# Errors that the user can mend; any other OSError is a bug and keeps its traceback.
USER_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "that disk is read-only",
    errno.ENOTDIR: "a file stands where a folder should be",
    errno.EEXIST: "a file stands where a folder should be",
    errno.ENAMETOOLONG: "the name is too long",
}

STALE_SECONDS = 86_400  # age from which a temporary file of another host is taken to be abandoned
_STEM = 40  # characters of the file's own name in that of its temporary file, which may have 255 bytes
# .NAME.sora_jax-HOST-PID-RANDOM.SUFFIX: no file of a user has such a name.
_TEMPORARY = re.compile(r"\..*\.sora_jax-([0-9a-f]{8})-(\d+)-[0-9a-f]{16}(\.\w+)?")

# Time after which a file's time of modification tells every change: of clocks in whole seconds, and of finer ones.
_SETTLED_SECONDS = (2.0, 0.05)


def as_path(path: str | os.PathLike) -> pathlib.Path:
    """The path that a user names, in a bucket if it begins with gs:// or s3://; ~ is the user's home folder.

    Raises: InputError if it begins with another scheme, or the extra that reads such a bucket is not installed.
    """
    if not in_bucket(path):
        return pathlib.Path(path).expanduser()
    from sora_jax.core.buckets import bucket_path  # its libraries take a while to import

    return bucket_path(os.fspath(path))


def in_bucket(path: str | os.PathLike) -> "TypeIs[BucketPath]":
    """Whether a path lies in a bucket."""
    return "://" in os.fspath(path)


def check_bucket(path: str | os.PathLike):
    """Raise InputError if a path lies in a bucket that does not exist, can't be listed or does not answer."""
    path = as_path(path)
    if in_bucket(path):
        path.check_bucket()


def local_file(path: str | os.PathLike) -> pathlib.Path:
    """A file of this machine with the same content, for libraries that read no buckets: a copy that is kept.

    Raises: InputError if it is not there.
    """
    path = as_path(path)
    return local_cache().copy_of(path) if in_bucket(path) else path


@contextlib.contextmanager
def explain_os_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn an OSError of writing `path` that the user can mend into an InputError."""
    try:
        yield
    except OSError as error:
        if error.errno not in USER_ERRORS:
            raise
        raise InputError(f"{path}: can't be written, {USER_ERRORS[error.errno]}") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary file to write, which replaces `path` at the end of the block, or is removed after an error.

    Args:
      path: the file to write; its folder is made if it is absent. An existing file stays until the new one is
        complete and on the disk, or in the bucket.
    Raises: InputError if it can't be written, e.g. because the disk is full.
    """
    path = as_path(path)
    if in_bucket(path):
        with tempfile.TemporaryDirectory(prefix="sora_jax-") as folder:
            temporary = pathlib.Path(folder, path.name)
            with explain_os_errors(temporary):
                temporary.touch()
                yield temporary
            path.upload(temporary)
        return
    temporary = temporary_path(path)
    try:
        with explain_os_errors(path):
            if path.is_dir():
                raise InputError(f"{path}: is a folder; name a file in it")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # as the umask says: some writers make a file that only its owner can read
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_path(path: pathlib.Path) -> pathlib.Path:
    """A new hidden name beside `path`, unique over hosts and processes, with its suffix: writers go by that."""
    owner = f"{_host()}-{os.getpid()}-{secrets.token_hex(8)}"
    return path.with_name(f".{path.stem[:_STEM]}.sora_jax-{owner}{path.suffix}")


def remove_stale_temporaries(folder: pathlib.Path):
    """Remove the temporary files that `atomic_write` left in a folder because its process was killed.

    Only names of our own form, and of those only files of a dead process of this host, or older than a day. There
    are none in a bucket.
    """
    if in_bucket(folder):
        return
    for path in folder.glob(".*"):
        owner = _TEMPORARY.fullmatch(path.name)
        if not owner or not path.is_file():
            continue
        dead = owner[1] == _host() and not process_exists(int(owner[2]))
        if dead or time.time() - path.stat().st_mtime > STALE_SECONDS:
            path.unlink(missing_ok=True)


def _host() -> str:
    """A hash of this host's name: a host's name itself is nobody's business."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def process_exists(pid: int) -> bool:
    """Whether this host has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(path: str | os.PathLike) -> str:
    """16 hex digits of the SHA-256 of a whole file. Raises: InputError if there is no such file."""
    path = as_path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return sha256(path)[:16]


class HashCache:
    """Hashes of files that are computed once for each size, modification time and inode, and kept in a file.

    In a bucket: for each version of an object.

    Args:
      path: of the file, JSON; absent or damaged, it counts as empty.
    """

    def __init__(self, path: pathlib.Path):
        self._path, self._new = path, False
        try:
            self._hashes = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            self._hashes = {}

    def get(self, path: pathlib.Path, compute: Callable[[], str], part: str = "") -> str:
        """The hash of a file, or of a part of it, computed if it is not known yet. Raises: OSError."""
        before: Any = path.stat()
        if in_bucket(path):
            key = f"{path}:{before.version}:{part}"
        else:
            key = f"{before.st_dev}:{before.st_ino}:{before.st_size}:{before.st_mtime_ns}:{part}"
        if key not in self._hashes:
            if not in_bucket(path):
                # A file that is still being written may change again within the same time stamp.
                settled = _SETTLED_SECONDS[before.st_mtime_ns % 10**9 > 0]
                time.sleep(min(settled, max(0, before.st_mtime + settled - time.time())))
            self._hashes[key], self._new = compute(), True
        return self._hashes[key]

    def save(self):
        """Write the file, if there is anything new. Raises: InputError if it can't be written."""
        if self._new:
            with atomic_write(self._path) as temporary:
                temporary.write_text(json.dumps(self._hashes, sort_keys=True))


def weights_digest(folder: str | os.PathLike) -> str:
    """A hash of the safetensors in a folder; "" counts as an empty folder."""
    files = sorted(as_path(folder).glob("*.safetensors")) if folder else []
    return digest([content_hash(file) for file in files])


def digest(value) -> str:
    """A hash of any value that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def read_object(path: pathlib.Path) -> dict:
    """The object in a JSON file. Raises: InputError if it is absent, no JSON or no object."""
    if not path.is_file():
        there = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file" + (f", {did_you_mean(path.name, there)}" if there else ""))
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: no JSON ({error}); copy it again from its source") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: an object is needed, not {type(values).__name__}")
    return values


def copy_file(source: pathlib.Path, target: pathlib.Path):
    """Copy a file atomically, also to or from a bucket. Raises: InputError if it can't be written."""
    with atomic_write(target) as temporary:
        if in_bucket(source):
            source.download(temporary)
        else:
            shutil.copyfile(source, temporary)


def copy_files(source: pathlib.Path, target: pathlib.Path):
    """Copy the files of a folder into another one, each atomically.

    Raises: InputError if one can't be written, e.g. because the disk is full.
    """
    for file in sorted(path for path in source.iterdir() if path.is_file()):
        copy_file(file, target / file.name)


def move_folder(source: pathlib.Path, target: pathlib.Path, *, mark: str = ""):
    """Give a folder another name. In a bucket its files are copied first, and a stop leaves it under the old name.

    Args:
      mark: name of the file that says that the folder is complete: copied last, removed first.
    """
    if not in_bucket(source):
        source.rename(target)
        return
    for file in sorted(source.rglob("*"), key=lambda path: path.name == mark):
        file.copy_to(target / file.relative_to(source))
    remove_folder(source, mark=mark)


def remove_folder(folder: pathlib.Path, *, mark: str = ""):
    """Remove a folder and all in it, if it is there; `mark`: as for `move_folder`."""
    if not in_bucket(folder):
        if folder.is_dir():
            shutil.rmtree(folder)
        return
    if mark:
        (folder / mark).unlink(missing_ok=True)
    folder.rmtree(missing_ok=True)
