"""Checkpoints that are kept from pruning because another process asks for them: the best one, one being measured.

`kept_steps.json` in a workdir maps who asks to the steps.
"""

import json
import pathlib
from collections.abc import Sequence

import orbax.checkpoint as ocp

from sora_jax.cluster.agreement import of_first_host
from sora_jax.core.storage import atomic_write

FILE = "kept_steps.json"


def read_kept_steps(workdir: pathlib.Path) -> dict[str, list[int]]:
    """Who asks -> steps; {} if nobody does."""
    try:
        held = json.loads((workdir / FILE).read_text())
        return {str(name): [int(step) for step in steps] for name, steps in held.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def keep_steps(workdir: pathlib.Path, name: str, steps: Sequence[int]):
    """Ask for steps under a name, in place of those that it asked for before. Raises: InputError if unwritable."""
    held = read_kept_steps(workdir)
    if held.get(name, []) == list(steps):
        return
    with atomic_write(workdir / FILE) as temporary:
        temporary.write_text(json.dumps({**held, name: list(steps)}))


class AskedFor(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the steps that are asked for, as of the last `read`."""

    def __init__(self, workdir: pathlib.Path):
        self._workdir = workdir
        self._steps: set[int] = set()

    def read(self):
        """Read the file, on the first host for all of them: they must agree on what is deleted."""
        held = of_first_host(lambda: json.dumps(read_kept_steps(self._workdir)))
        self._steps = {step for steps in json.loads(held).values() for step in steps}

    def should_preserve(self, checkpoints, *, context):
        return [checkpoint.step in self._steps for checkpoint in checkpoints]
