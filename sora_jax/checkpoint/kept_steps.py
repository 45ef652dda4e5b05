"""Checkpoints that are kept from pruning because another process asks for them: the best one, one being measured.

`kept_steps.json` in a workdir maps who asks to the steps.
"""

import json
import pathlib
from collections.abc import Sequence

import orbax.checkpoint as ocp

from sora_jax.cluster.agreement import of_first_host
from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write, read_object

FILE = "kept_steps.json"


def read_kept_steps(workdir: pathlib.Path) -> dict[str, list[int]]:
    """Who asks -> steps; {} if nobody does. Raises: InputError if the file is damaged or can't be read."""
    path = workdir / FILE
    if not path.exists():
        return {}
    try:
        return {str(name): [int(step) for step in steps] for name, steps in read_object(path).items()}
    except (ValueError, TypeError):
        raise InputError(f"{path}: is damaged; remove it, and steps that it kept may be pruned") from None


def keep_steps(workdir: pathlib.Path, name: str, steps: Sequence[int]):
    """Ask for steps under a name, in place of those that it asked for before. Raises: InputError if unwritable."""
    held = read_kept_steps(workdir)
    if held.get(name, []) == list(steps):
        return
    with atomic_write(workdir / FILE) as temporary:
        temporary.write_text(json.dumps({**held, name: list(steps)}))


class RequestedSteps(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the steps that are asked for, as of the last `read`."""

    def __init__(self, workdir: pathlib.Path):
        self._workdir = workdir
        self._steps: set[int] | None = set()  # None: the file can't be read, so every step is kept

    def read(self):
        """Read the file, on the first host for all of them: they must agree on what is deleted."""

        def look() -> str:
            try:
                held = read_kept_steps(self._workdir)
            except InputError:  # not a reason to end a training
                return json.dumps(None)
            return json.dumps([step for steps in held.values() for step in steps])

        steps = json.loads(of_first_host(look))
        self._steps = None if steps is None else set(steps)

    def should_preserve(self, checkpoints, *, context):
        return [self._steps is None or checkpoint.step in self._steps for checkpoint in checkpoints]
