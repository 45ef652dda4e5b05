"""The heartbeat of a process: a small file that it rewrites at every update, for its supervisor.

The environment variable SORA_JAX_HEARTBEAT names the file; without it none is written.
"""

import dataclasses
import json
import os
import pathlib

from sora_jax.core.storage import explain_os_errors

VARIABLE = "SORA_JAX_HEARTBEAT"

STARTING = "starting"  # joining, reading, compiling: fewer than two updates are done
TRAINING = "training"  # the next beat comes with the next update
BUSY = "busy"  # sample videos or the last checkpoint, which can take as long as a start
DONE = "done"  # all updates are done
PREEMPTED = "preempted"  # stopped by SIGTERM, and the state is saved


@dataclasses.dataclass(frozen=True)
class Beat:
    """The last state of a process. start: updates done when it started; step: updates done now."""

    pid: int
    doing: str
    start: int
    step: int


class Heartbeat:
    """Writes this process's beats, if SORA_JAX_HEARTBEAT is set."""

    def __init__(self):
        self._path = pathlib.Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
        self.start = self.step = 0

    def beat(self, doing: str, step: int | None = None):
        """Write the state and the number of updates done; without `step`, the number stays.

        Raises: InputError if the file can't be written, e.g. because the disk is full.
        """
        self.step = self.step if step is None else step
        if self._path is None:
            return
        text = json.dumps(dataclasses.asdict(Beat(os.getpid(), doing, self.start, self.step)))
        # Replaced, so that no reader finds half of it; not synced, as it has no use after a crash.
        temporary = self._path.with_suffix(".new")
        with explain_os_errors(self._path):
            temporary.write_text(text)
            temporary.replace(self._path)


def read_beat(path: pathlib.Path) -> Beat | None:
    """The last beat of a process; None before the first."""
    try:
        return Beat(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
