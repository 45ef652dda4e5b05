"""Training and evaluation as functions: they return what the commands print."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence

from sora_jax.api.model import Model, load
from sora_jax.checkpoint.workdir import split_step
from sora_jax.config.files import ConfigDict, read_config
from sora_jax.config.load import from_config, with_absolute_paths
from sora_jax.config.schema import MeshSettings, Settings
from sora_jax.core.console import Console
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path
from sora_jax.evaluate import evaluate as evaluation
from sora_jax.evaluate.benchmark import Options, Subject
from sora_jax.evaluate.subjects import open_subjects
from sora_jax.evaluate.suites.registry import BENCHMARKS as GENERAL
from sora_jax.evaluate.verdict.decisions import Wanted
from sora_jax.interop.adapters.weights import absolute_choice
from sora_jax.train import loop
from sora_jax.train.monitoring.trackers import DEFAULT as DEFAULT_TRACKERS
from sora_jax.worlds.emoji.suite import BENCHMARKS as EMOJI
from sora_jax.worlds.shapes import SHIPPED_MODEL
from sora_jax.worlds.shapes.benchmarks import BENCHMARKS as SHAPES

BENCHMARKS = GENERAL | SHAPES | EMOJI


@dataclasses.dataclass(frozen=True)
class Training:
    """A run as far as it got.

    step: updates that are done.
    metrics: of each logged update, with its "step"; the lines of metrics.jsonl.
    """

    workdir: pathlib.Path
    step: int
    metrics: list[dict]

    def load(self, **options) -> Model:
        """The trained model; options as `load` takes them."""
        return load(self.workdir, **options)


def train(
    config: Settings | ConfigDict | str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    lora: Sequence[str] = (),
    console: Console | None = None,
    on_metrics: Callable[[int, dict], None] = lambda step, values: None,
    trackers: Sequence[str] = DEFAULT_TRACKERS,
) -> Training:
    """A trained model in a workdir; a run that it holds is continued.

    Args:
      config: settings, or a file as --config takes it.
      lora: adapters to train on, each PATH or PATH:STRENGTH.
      console: for notes and progress; None: silent.
      on_metrics: called with each logged update and its metrics; an exception that it raises ends the run.
      trackers: of tensorboard, wandb and mlflow, as --tracker takes them.
    Raises: InputError for settings, data or a workdir that do not fit together.
    """
    if isinstance(config, str | os.PathLike):
        config = read_config(str(config))
    settings = with_absolute_paths(config if isinstance(config, Settings) else from_config(config))
    base = tuple(map(absolute_choice, lora or settings.lora.base))
    settings = dataclasses.replace(settings, lora=dataclasses.replace(settings.lora, base=base))
    folder = as_path(workdir)
    console = console or Console(quiet=True)
    state = loop.train(settings, folder, console=console, on_metrics=on_metrics, trackers=trackers)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return Training(folder, int(state.step), [json.loads(line) for line in lines])


def evaluate(
    checkpoints: str | os.PathLike | Sequence[str | os.PathLike] = (),
    out: str | os.PathLike = "",
    *,
    subjects: Sequence[str] = (),
    suite: Sequence[str] = (),
    step: str = "",
    wanted: Wanted | None = None,
    mesh: MeshSettings | None = None,
    console: Console | None = None,
    **options,
) -> dict:
    """Numbers of trained models: the content of evaluation.json (docs/reference/evaluation_json.md).

    Args:
      checkpoints: workdirs or released models; without any, and without subjects, the model of the shapes world.
      out: folder for the report, needed for several; default: evaluation in the workdir.
      subjects: checkpoints with settings of their own, and folders of videos, as --subject takes them.
      suite: names of benchmarks; (): by each subject's objective.
      step: of each run: "" is the newest, a number, "all", or "every:N".
      options: fields of sora_jax.evaluate.benchmark.Options: samples, sizes, frames, prompts, seed and others.
    Raises: InputError for what can't be used; NotGoodEnough if a model fails a benchmark or what is wanted.
    """
    given = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
    named = [str(path) for path in given]
    folder = report_folder(named, subjects, str(out))
    if not named and not subjects:
        named, suite = [str(SHIPPED_MODEL)], suite or ("shapes",)  # its data set is not shipped
    known = [field.name for field in dataclasses.fields(Options)]
    if unknown := set(options) - set(known):
        raise InputError(f"{min(unknown)}: no such option; there are {', '.join(known)}")
    opened = open_subjects(named, subjects, step, folder)
    return measure(opened, folder, suite=suite, wanted=wanted, mesh=mesh, console=console, **options)


def measure(
    opened: Sequence[Subject],
    out: pathlib.Path,
    *,
    suite: Sequence[str] = (),
    wanted: Wanted | None = None,
    mesh: MeshSettings | None = None,
    console: Console | None = None,
    **options,
) -> dict:
    """What `evaluate` returns, of subjects that are open."""
    return evaluation.evaluate(
        opened,
        out,
        benchmarks=BENCHMARKS,
        suite=suite,
        options=Options(**options),
        mesh=mesh or MeshSettings(data=-1),
        console=console or Console(quiet=True),
        wanted=wanted,
    )


def report_folder(checkpoints: Sequence[str], subjects: Sequence[str], out: str) -> pathlib.Path:
    """The folder of a report. Raises: InputError if none is named, and no single workdir can hold it."""
    count = len(checkpoints) + len(subjects)
    if not out and (count > 1 or subjects):
        raise InputError(
            f"--out is missing: name a folder for the report{f' on {count} subjects' if count > 1 else ''}"
        )
    if out or not checkpoints:
        return as_path(out or "evaluation")
    return split_step(as_path(checkpoints[0]))[0] / "evaluation"
