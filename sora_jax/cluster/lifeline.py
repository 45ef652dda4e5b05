"""Ends the processes of a supervisor when the supervisor itself dies, even of SIGKILL.

Linux sends them SIGTERM at its death (PR_SET_PDEATHSIG). That does not reach what they started, nor is it known
elsewhere, so there is also a watcher: a process that reads their numbers from a pipe. When the pipe ends without a
word, the supervisor is gone, and the watcher ends them all. This file is the watcher's program as well.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

DONE = "done"
POLL = 0.1  # seconds
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class Lifeline:
    """The supervisor's end of the pipe.

    Args:
      grace: seconds from SIGTERM to SIGKILL.
    """

    def __init__(self, grace: float):
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", __file__, str(grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def add(self, session: int):
        """End this session, named by its first process, when the supervisor dies."""
        self._say(str(session))

    def close(self):
        """The supervisor has ended all of them itself."""
        self._say(DONE)
        with contextlib.suppress(BrokenPipeError):
            self._watcher.stdin.close()
        self._watcher.wait()

    def _say(self, line: str):
        with contextlib.suppress(BrokenPipeError):  # somebody killed the watcher
            print(line, file=self._watcher.stdin, flush=True)


def die_with_parent() -> Callable[[], None] | None:
    """A `preexec_fn` for subprocess.Popen; None where the system has no such call."""
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def tie():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return tie


def watch(grace: float):
    """Read sessions from standard input; end them all if it ends without DONE."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    lines = sys.stdin.read().split()
    if DONE in lines:
        return
    sessions = [int(line) for line in lines]
    deadline = time.monotonic() + grace
    for number in (signal.SIGTERM, signal.SIGKILL):
        sessions = [session for session in sessions if send(session, number)]
        while number == signal.SIGTERM and any(send(s, 0) for s in sessions) and time.monotonic() < deadline:
            time.sleep(POLL)


def send(session: int, number: int) -> bool:
    """Whether the session was there to get the signal."""
    try:
        os.killpg(session, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    watch(float(sys.argv[1]))
