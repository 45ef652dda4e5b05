"""Copies of files in buckets on this host's disk: checked, shared by its processes, bounded in size."""

import base64
import hashlib
import os
import pathlib
import secrets
import time

import filelock
import platformdirs

from sora_jax.core.errors import InputError

VARIABLE = "SORA_JAX_FILES"  # the folder; its default is the platform's folder for caches
GB_VARIABLE = "SORA_JAX_FILES_GB"
DEFAULT_GB = 200.0
TRIES = 3  # of a copy that differs from its checksum
IN_USE_SECONDS = 60  # a copy that was asked for so lately is not removed: its file may not be open yet


class LocalCache:
    """A folder of copies. What was used longest ago is removed when they are larger than the bound together.

    Args:
      folder: made if it is absent.
      max_bytes: the bound; a single larger file is kept nevertheless.
    """

    def __init__(self, folder: pathlib.Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes

    def copy_of(self, path, sha256: str = "") -> pathlib.Path:
        """A local file with the content of an object, which is downloaded unless a copy is there.

        Args:
          path: BucketPath of the object.
          sha256: its checksum, if it is known; else the bucket is asked for its version and its MD5.
        Raises: InputError if the object is absent, or differs from its checksum again and again.
        """
        if sha256:
            status, key = None, sha256
        else:
            try:
                status = path.stat()
            except FileNotFoundError:
                raise InputError(f"{path}: no such file") from None
            key = hashlib.sha256(f"{path}:{status.version}:{status.st_size}".encode()).hexdigest()
        copy = self.folder / key[:2] / f"{key}{path.suffix}"
        if not _use(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(copy.with_name(f"{key[:16]}.lock")):
                if not _use(copy):  # another process has copied it meanwhile
                    self._download(path, copy, sha256, status.md5 if status else "")
            self._remove_oldest(keep=copy)
        return copy

    def _download(self, path, copy, sha256, md5):
        # The suffix stays last: readers go by it.
        partial = copy.with_name(f"{copy.stem[:16]}-{os.getpid()}-{secrets.token_hex(4)}.partial{copy.suffix}")
        try:
            for _ in range(TRIES):
                try:
                    path.download(partial)
                except FileNotFoundError:
                    raise InputError(f"{path}: no such file") from None
                with partial.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256" if sha256 else "md5")
                md5_is_right = md5 in ("", base64.b64encode(found.digest()).decode())
                if found.hexdigest() == sha256 or (not sha256 and md5_is_right):
                    partial.replace(copy)
                    return
            raise InputError(f"{path}: differs from its checksum, {TRIES} times; copy it there again")
        except OSError as error:
            if error.errno is None:
                raise
            raise InputError(f"{copy.parent}: no copy of {path} can be written, {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)

    def _remove_oldest(self, keep: pathlib.Path):
        found = []
        for path in self.folder.glob("*/*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # removed by another process
                continue
            if path.suffix != ".lock" and path != keep:
                found.append((status.st_mtime, status.st_size, path))
        total = keep.stat().st_size + sum(size for _, size, _ in found)
        for last_use, size, path in sorted(found):
            if total <= self.max_bytes or time.time() - last_use < IN_USE_SECONDS:
                return
            path.unlink(missing_ok=True)
            total -= size


def _use(copy: pathlib.Path) -> bool:
    """Whether a copy is there; its time of modification is that of its last use."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        return False
    return True


def cache_is_named() -> bool:
    """Whether somebody has named a folder for copies: large files are copied only then."""
    return bool(os.environ.get(VARIABLE))


def local_cache() -> LocalCache:
    """The cache of this process: in $SORA_JAX_FILES, of at most $SORA_JAX_FILES_GB.

    Raises: InputError if the size is no number.
    """
    folder = os.environ.get(VARIABLE) or platformdirs.user_cache_path("sora_jax") / "files"
    try:
        size = float(os.environ.get(GB_VARIABLE) or DEFAULT_GB)
    except ValueError:
        raise InputError(f"{GB_VARIABLE}={os.environ[GB_VARIABLE]}: must be a number of gigabytes") from None
    return LocalCache(pathlib.Path(folder).expanduser(), int(size * 1e9))
