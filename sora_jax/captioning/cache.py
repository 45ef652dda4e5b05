"""A cache of answers on disk, a line of JSON each, so that no answer is paid for twice."""

import fcntl
import hashlib
import json
import os
import pathlib
import threading

from sora_jax.core.errors import InputError
from sora_jax.core.storage import explain_os_errors


def key_of(**parts) -> str:
    """32 hex digits that change with any part of a question."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def cache_beside(out: pathlib.Path) -> pathlib.Path:
    """The cache file of an output file."""
    return out.with_name(f"{out.stem}.cache.jsonl")


class Cache:
    """A file of {"key": ..., "answer": ..., and notes for readers}; a context manager.

    A line that was cut short is dropped. Threads may share a cache, processes may not.

    Raises: InputError if another process has it open, or it can't be written.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._lock = threading.Lock()

    def __enter__(self) -> "Cache":
        with explain_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise InputError(
                f"{self.path}: another run writes to it; wait for it, or name another --out"
            ) from None
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        self._answers = {}
        for line in content[:whole].splitlines():
            try:
                row = json.loads(line)
                self._answers[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError):
                continue  # a damaged line is asked for again
        return self

    def __exit__(self, *error):
        if not self._answers:  # leave no file behind a failed run
            self.path.unlink(missing_ok=True)
        self._file.close()

    def get(self, key: str):
        """The answer, None if there is none yet."""
        return self._answers.get(key)

    def put(self, key: str, answer, **notes):
        """Add an answer; it is on the disk when this returns."""
        line = json.dumps({"key": key, **notes, "answer": answer}, ensure_ascii=False) + "\n"
        with self._lock, explain_os_errors(self.path):
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._answers[key] = answer
