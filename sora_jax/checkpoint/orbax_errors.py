"""Orbax's and TensorStore's errors, sorted into broken checkpoints, unreadable disks and failed writes."""

import asyncio
import errno
import pathlib
import re
from collections.abc import Callable

import jax

from sora_jax.core.buckets import bucket_reason
from sora_jax.core.errors import InputError
from sora_jax.core.storage import USER_ERRORS, in_bucket

# Reasons why a read fails though the files are whole, by the system's number or TensorStore's status.
UNREADABLE = {
    errno.EACCES: "no permission to read it",
    errno.EPERM: "no permission to read it",
    errno.ENOTCONN: "the disk is not reachable",
    errno.ESTALE: "the disk is not reachable",
    errno.ETIMEDOUT: "the disk is not reachable",
    errno.EMFILE: "too many files are open (ulimit -n)",
    errno.ENOMEM: "there is no memory left",
    "PERMISSION_DENIED": "no permission to read it",
    "UNAUTHENTICATED": "no permission to read it",
    "UNAVAILABLE": "the disk is not reachable",
    "DEADLINE_EXCEEDED": "the disk is not reachable",
}


class BrokenCheckpoint(Exception):
    """A checkpoint differs from what was written: which file or array, and how."""


def read_with_orbax(read: Callable, path: pathlib.Path):
    """The result of `read`, which reads `path` with Orbax.

    Raises: BrokenCheckpoint; InputError if the path can't be read here.
    """
    policy = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(PatientPolicy())
    try:
        return read()
    except (jax.errors.JaxRuntimeError, MemoryError):
        raise  # the devices failed, not the files
    except Exception as error:  # Orbax, its parsers and TensorStore raise exceptions of all kinds
        if reason := reason_unreadable(error, path):
            raise InputError(f"{path}: can't be read, {reason}") from error
        raise BrokenCheckpoint(describe_damage(error, path.name)) from error
    finally:
        asyncio.set_event_loop_policy(policy)


class PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that finishes all its tasks before it closes.

    Orbax reads all arrays at once and closes its loop at the first error. Each of the other reads would then print
    a traceback, because its loop is gone.
    """

    def close(self):
        while not self.is_closed() and (left := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        super().close()


class PatientPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self):
        return PatientLoop()


def reason_unreadable(error: Exception, path: pathlib.Path) -> str | None:
    """Why a read failed, if the reason says nothing about the files; else None."""
    if in_bucket(path) and not isinstance(error, FileNotFoundError):
        return bucket_reason(error, str(path).partition(":")[0]) or None
    if isinstance(error, OSError):
        return UNREADABLE.get(error.errno)
    text = f"{error} {error.__cause__}"
    if code := _system_error(text):
        return UNREADABLE.get(code)
    return next((why for word, why in UNREADABLE.items() if isinstance(word, str) and f"{word}:" in text), None)


def describe_damage(error: Exception, name: str) -> str:
    """The array that can't be read, or the file `name`, and the reason."""
    text = f"{error} {error.__cause__ or ''}"
    array = re.search(r"""['"]([\w.]+)/(?:\.zarray)?['"]""", text)
    status = re.search(r"\b(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|INVALID_ARGUMENT|FAILED_PRECONDITION)\b", text)
    why = status[0].lower().replace("_", " ") if status else f"{type(error).__name__}: {str(error).strip()[:100]}"
    return f"{array[1] if array else name} can't be read, {why.splitlines()[0]}"


def reason_unwritable(error: Exception) -> str:
    """Why a write failed."""
    number = _system_error(str(error)) or getattr(error, "errno", None)
    return USER_ERRORS.get(number) or str(error).splitlines()[0][:300]


def _system_error(text: str) -> int | None:
    """The system's error number, which TensorStore has only in the text of a ValueError."""
    code = re.search(r"os_error_code='(\d+)'", text)
    return int(code[1]) if code else None
