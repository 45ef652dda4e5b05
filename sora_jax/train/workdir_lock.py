"""A lock on a workdir: one run writes into it at a time. `sample` and `evaluate` read it meanwhile."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

from sora_jax.core.errors import InputError
from sora_jax.core.storage import explain_os_errors, process_exists

FILE = "run.lock"
TOUCH_SECONDS = 10  # interval at which the owner touches the lock
STALE_SECONDS = 60  # without a touch, after which an owner that can't be looked up counts as dead
DEAD_SECONDS = 180  # without a touch, after which a dead owner's run is not started again: supervisors wait 60 s


class WorkdirLock:
    """A context manager that holds the lock of a workdir.

    A dead owner's lock is taken over: at once if it ran on this host, else when it stops touching the lock.

    Raises: InputError if another process holds it.
    """

    def __init__(self, workdir: pathlib.Path):
        self.path = workdir / FILE
        self._me = describe_process()
        self._lost, self._released = threading.Event(), threading.Event()

    def __enter__(self):
        with explain_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
        threading.Thread(target=self._touch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._released.set()
        with contextlib.suppress(OSError), opened(self.path) as file:
            if read_owner(file) == self._me:
                self.path.unlink()

    def check(self):
        """Raise InputError if another process took the lock over, because this one was suspended."""
        if self._lost.is_set():
            raise InputError(f"{self.path.parent}: another process took this run over; this one stops")

    def held_by(self, owner: dict) -> str:
        """The message to another run that wants the lock."""
        return (
            f"{self.path.parent}: process {owner['pid']} on {owner['host']} has trained here since "
            f"{owner['time']}; take another --workdir, or stop that process"
        )

    def _acquire(self):
        touched, deadline = None, time.monotonic() + STALE_SECONDS
        while True:
            with opened(self.path) as file:
                owner, last = read_owner(file), os.fstat(file.fileno()).st_mtime_ns
                touched = touched or last
                dead = owner is None or is_dead(owner, self._me)
                # Before the deadline is looked at: another run may have taken over just now.
                if not dead and (is_local(owner, self._me) or last != touched):
                    raise InputError(self.held_by(owner))
                if dead or time.monotonic() > deadline:
                    write_owner(file, self._me)
                    return
            time.sleep(1)

    def _touch(self):
        while not self._released.wait(TOUCH_SECONDS):
            with contextlib.suppress(OSError), opened(self.path) as file:
                if read_owner(file) not in (None, self._me):
                    self._lost.set()
                    return
                os.utime(self.path)


def is_locked(workdir: pathlib.Path) -> bool:
    """Whether a run has the lock of a workdir, or had it when it died."""
    return (workdir / FILE).exists()


def has_died(workdir: pathlib.Path) -> bool:
    """Whether the owner of a workdir's lock died and no supervisor has started the run again since."""
    path = workdir / FILE
    with contextlib.suppress(OSError):
        owner, me = valid_owner(path.read_bytes()), describe_process()
        untouched = time.time() - path.stat().st_mtime
        alive = owner is not None and is_local(owner, me) and not is_dead(owner, me)
        return untouched > DEAD_SECONDS and not alive
    return False


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator:
    """The file of a lock, made if it is absent; no other process of a disk with file locks opens it meanwhile."""
    while True:
        with path.open("a+", encoding="utf-8") as file:
            with contextlib.suppress(OSError):  # a disk without file locks
                fcntl.flock(file, fcntl.LOCK_EX)
            # Its owner may have removed it just before.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield file
                return


def read_owner(file) -> dict | None:
    """The owner that a lock names; None if it is new, or was cut short."""
    file.seek(0)
    return valid_owner(file.read())


def valid_owner(content: str | bytes) -> dict | None:
    """The owner in the content of a lock; None if it is none."""
    try:
        owner = json.loads(content)
    except ValueError:
        return None
    return owner if isinstance(owner, dict) and {"host", "pid", "time"} <= owner.keys() else None


def write_owner(file, owner: dict):
    """Write a new owner into a lock."""
    file.truncate(0)
    json.dump(owner, file)
    file.flush()


def describe_process() -> dict:
    """This process: host and process namespace, number, start of the process, and the time now."""
    namespace = ""
    with contextlib.suppress(OSError):  # no /proc
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115, its target is no path
    return {
        "host": socket.gethostname(),
        "namespace": namespace,
        "pid": os.getpid(),
        "start": start_of(os.getpid()),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def is_local(owner: dict, me: dict) -> bool:
    """Whether the owner's process can be looked up from here."""
    return all(owner.get(key) == me[key] for key in ("host", "namespace"))


def is_dead(owner: dict, me: dict) -> bool:
    """Whether the owner is known to be dead; another process may have its number today."""
    if not is_local(owner, me):
        return False
    return not process_exists(owner["pid"]) or owner.get("start") != start_of(owner["pid"])


def start_of(pid: int) -> str:
    """When a process started, in the system's clock ticks; "" where there is no /proc."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
