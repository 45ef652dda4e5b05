"""The sign of life that a process gives to whoever watches it: a small file, new at every update.

The file is named by the environment variable SORA_JAX_HEARTBEAT; without it there is none.
"""

import dataclasses
import json
import os
import pathlib

from sora_jax.core.storage import explain_os_errors

VARIABLE = "SORA_JAX_HEARTBEAT"

STARTING = "starting"  # joining, reading, compiling: not two updates are done yet
TRAINING = "training"  # the next sign comes with the next update
BUSY = "beside"  # something else that may take as long as a start: sample videos, the last checkpoint
DONE = "done"  # all updates are done
PREEMPTED = "preempted"  # told to end by SIGTERM, and the state is saved


@dataclasses.dataclass(frozen=True)
class Beat:
    """What a process said last. start: updates done when it began; step: updates done now."""

    pid: int
    doing: str
    start: int
    step: int


class Heartbeat:
    """Writes this process's beats, if anybody asked for them."""

    def __init__(self):
        self._path = pathlib.Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
        self.start = self.step = 0

    def beat(self, doing: str, step: int | None = None):
        """Say what is being done, and how many updates have been; without `step` as many as before.

        Raises: InputError if the file can't be written, e.g. because the disk is full.
        """
        self.step = self.step if step is None else step
        if self._path is None:
            return
        text = json.dumps(dataclasses.asdict(Beat(os.getpid(), doing, self.start, self.step)))
        # Replaced, so that no reader finds half of it; not synced, as it means nothing after a crash.
        temporary = self._path.with_suffix(".new")
        with explain_os_errors(self._path):
            temporary.write_text(text)
            temporary.replace(self._path)


def read_beat(path: pathlib.Path) -> Beat | None:
    """What a process said last; None if it has said nothing."""
    try:
        return Beat(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
