"""A checkpoint under test."""

import dataclasses
import functools
import hashlib
import pathlib

from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.model_folder import model_hash
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.config.load import to_json
from sora_jax.config.schema import Settings
from sora_jax.generate.generator import Generator, load_generator


@dataclasses.dataclass(frozen=True)
class CheckpointUnderTest:
    """A checkpoint under test.

    Args:
      name: in reports.
      workdir: of its training run, or the folder of a released model.
      folder: of its checkpoints, or of the released weights.
      out: folder for its samples and values.
    """

    name: str
    workdir: pathlib.Path
    folder: pathlib.Path
    step: int
    settings: Settings
    out: pathlib.Path

    @functools.cached_property
    def generator(self) -> Generator:
        return load_generator(self.workdir)

    @functools.cached_property
    def content_hash(self) -> str:
        """16 hex digits that change with the checkpoint."""
        step = self.folder / str(self.step)
        written = step.stat().st_mtime_ns if step.is_dir() else model_hash(self.folder)
        text = f"{self.step} {written} {to_json(self.settings)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_checkpoint(workdir: pathlib.Path, name: str, out: pathlib.Path) -> CheckpointUnderTest:
    """The newest checkpoint of a training run, or a released model. Raises: InputError if there is none."""
    folder, step = find_checkpoint(workdir)
    settings, _ = read_meta(folder, step)
    return CheckpointUnderTest(name, pathlib.Path(workdir), pathlib.Path(folder), step, settings, out)
