"""A checkpoint under test."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, cast

import sora_jax
from sora_jax.checkpoint.frozen_params import LOW_NOISE
from sora_jax.checkpoint.meta import load_meta, read_meta
from sora_jax.checkpoint.model_folder import model_hash
from sora_jax.checkpoint.workdir import CHECKPOINTS, RELEASED, find_checkpoint, find_steps, written_at
from sora_jax.config.load import from_json
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, atomic_write, content_hash, digest, read_object
from sora_jax.data.loader.mixture import Mixture
from sora_jax.generate.generator import Generator, load_generator

KEPT = "subject.json"
MODEL_SETTINGS = ("objective", "autoencoder", "text", "image", "transformer", "flow", "masks")


@dataclasses.dataclass(frozen=True)
class CheckpointUnderTest:
    """A checkpoint under test, at one choice of sampling settings.

    Args:
      name: in reports.
      workdir: of its training run, or the folder of a released model.
      folder: of its checkpoints, or of the released weights.
      settings: of the checkpoint; settings.sample with `changes`.
      out: folder for its samples and values.
      changes: sampling settings other than those of the checkpoint.
      kept_hash: its content_hash, if the checkpoint may be pruned already.
    """

    name: str
    workdir: pathlib.Path
    folder: pathlib.Path
    step: int
    settings: Settings
    out: pathlib.Path
    changes: Mapping[str, object] = dataclasses.field(default_factory=dict)
    kept_hash: str = ""

    @property
    def objective(self) -> str:
        return self.settings.objective

    @property
    def about(self) -> str:
        return f"{self.objective} after {self.step:,} updates"

    @property
    def sample_settings(self) -> dict:
        """The settings of its samples that are not the checkpoint's own, as JSON holds them."""
        return dict(self.changes)

    @functools.cached_property
    def generator(self) -> Generator:
        return load_generator(self.workdir, step=self.step, dtype=self.settings.sample.dtype or None)

    @functools.cached_property
    def content_hash(self) -> str:
        """16 hex digits that change with the weights and settings of the model.

        They are made of the checksums stored with a checkpoint: a copy of it, or a changed modification time,
        changes nothing.
        """
        return self.kept_hash or weights_hash(self.workdir, self.folder, self.step)

    def data_hash(self, path: str) -> str:
        """A hash of the data set at a path, by default the one that the checkpoint was trained on."""
        data = self.settings.data
        kind = "pixels" if self.settings.objective == "autoencoder" else data.kind
        return Mixture(path or data.path, kind, where="--data" if path else "data.path").digest

    def described(self) -> dict:
        """What a result depends on, for the report."""
        return {
            "path": str(self.workdir),
            "kind": self.objective,
            "step": self.step,
            "weights": self.content_hash,
            "sample": dataclasses.asdict(self.settings.sample),
            "version": sora_jax.__version__,
        }


def weights_hash(workdir: pathlib.Path, folder: pathlib.Path, step: int) -> str:
    """16 hex digits that change with the averaged weights of a checkpoint and with the models beside it."""
    settings, _ = read_meta(folder, step)
    parts: list = [{name: _without_paths(getattr(settings, name)) for name in MODEL_SETTINGS}]
    if folder.name == RELEASED:
        parts.append(model_hash(folder))
    else:
        leaves = load_meta(folder, step).leaves
        averaged = {name: leaf["sum"] for name, leaf in leaves.items() if name.startswith("ema.")}
        # An early version stored no checksums.
        parts.append(averaged or written_at(folder, step))
    coder = workdir / "autoencoder" / "model.safetensors"
    parts.append(content_hash(coder) if coder.is_file() else "")
    beside = [workdir / LOW_NOISE] if (workdir / LOW_NOISE).is_dir() else []
    if settings.lora.rank:
        beside.append(as_path(settings.train.init_from))
        parts.append([content_hash(path.rpartition(":")[0] or path) for path in settings.lora.base])
    parts += [weights_hash(other, *find_checkpoint(other)) for other in beside]
    text = as_path(settings.text.weights)
    if settings.text.weights and text.is_dir():  # many gigabytes: known by the sizes of its files
        parts.append(sorted((file.name, file.stat().st_size) for file in text.glob("*.safetensors")))
    return digest(parts)


def _without_paths(group: object) -> object:
    """A group of settings without the folders that it names, whose content counts instead."""
    if not dataclasses.is_dataclass(group):
        return group
    return {key: value for key, value in dataclasses.asdict(cast(Any, group)).items() if key != "weights"}


def open_checkpoint(
    workdir: pathlib.Path,
    name: str,
    out: pathlib.Path,
    *,
    step: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> CheckpointUnderTest:
    """A checkpoint of a training run, by default the newest, or a released model.

    Args:
      out: of the report; the checkpoint's own folder in it is named after its step and content.
      changes: of its sampling settings.
    Raises: InputError if there is none, or not that step.
    """
    workdir = as_path(workdir)
    folder, newest = find_checkpoint(workdir)
    if step is not None and step != newest:
        steps = find_steps(workdir)[1]
        if step not in steps:
            there = ", ".join(map(str, steps))
            raise InputError(f"{workdir}: no complete checkpoint of step {step}; there are {there}")
    step = newest if step is None else step
    settings, _ = read_meta(folder, step)
    changed = {k: v for k, v in (changes or {}).items() if getattr(settings.sample, k) != v}
    settings = dataclasses.replace(settings, sample=dataclasses.replace(settings.sample, **changed))
    made = CheckpointUnderTest(name, workdir, as_path(folder), step, settings, out, changed)
    own = json.dumps([made.content_hash, changed], sort_keys=True)
    own = hashlib.sha256(own.encode()).hexdigest()[:8]
    return dataclasses.replace(made, out=out / f"step-{step}-{own}", kept_hash=made.content_hash)


def write_kept(checkpoint: CheckpointUnderTest):
    """Write what is needed to show the results of a checkpoint after it is pruned."""
    about = {
        "workdir": str(checkpoint.workdir.resolve()),
        "step": checkpoint.step,
        "hash": checkpoint.content_hash,
    }
    with atomic_write(checkpoint.out / KEPT) as temporary:
        temporary.write_text(
            json.dumps(
                {**about, "settings": dataclasses.asdict(checkpoint.settings), "changes": dict(checkpoint.changes)}
            )
        )


def kept_checkpoints(workdir: pathlib.Path, out: pathlib.Path) -> list[CheckpointUnderTest]:
    """The checkpoints of a run, at its own settings, that an earlier evaluation into `out` has measured."""
    made = []
    for file in out.glob(f"step-*/{KEPT}"):
        about = read_object(file)
        if about["workdir"] != str(workdir.resolve()) or about["changes"]:
            continue
        settings = from_json(Settings, about["settings"], str(file))
        name = f"{workdir.resolve().name} at {about['step']:,}"
        folder = workdir.resolve() / CHECKPOINTS
        made.append(
            CheckpointUnderTest(name, workdir, folder, about["step"], settings, file.parent, {}, about["hash"])
        )
    return made
