"""The verb `evaluate`: suites of measures on one or more checkpoints, as JSON, tables, and a page side by side."""

import json
import pathlib
from collections.abc import Sequence

import jax
import rich.console

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.mesh import make_mesh
from sora_jax.core.storage import atomic_write
from sora_jax.evaluate.checkpoint_under_test import Options, Subject, measured, open_subject
from sora_jax.evaluate.suites.clip_score import CLIP
from sora_jax.evaluate.suites.fvd import FVD
from sora_jax.evaluate.suites.loss import LOSS
from sora_jax.evaluate.suites.reconstruction import RECONSTRUCTION
from sora_jax.evaluate.suites.temporal import TEMPORAL
from sora_jax.evaluate.suites.vbench import VBENCH
from sora_jax.report.page import write_page
from sora_jax.worlds.shapes.long_suite import LONG
from sora_jax.worlds.shapes.prompt_suite import SHAPES
from sora_jax.worlds.shapes.task_suite import TASKS

SUITES = {
    "loss": LOSS,
    "reconstruction": RECONSTRUCTION,
    "shapes": SHAPES,
    "tasks": TASKS,
    "long": LONG,
    "temporal": TEMPORAL,
    "fvd": FVD,
    "clip": CLIP,
    "vbench": VBENCH,
}
DEFAULT = {"flow": ("loss",), "autoencoder": ("reconstruction",)}  # by what a checkpoint was trained for


def evaluate(
    checkpoints: Sequence[pathlib.Path],
    out: pathlib.Path,
    *,
    suites: Sequence[str] = (),
    options: Options,
    mesh: MeshSettings,
    console: rich.console.Console,
) -> dict:
    """Measure what checkpoints are; what an earlier call has measured of the same is not measured again.

    Args:
      checkpoints: workdirs of training runs.
      out: folder for evaluation.json, index.html, and a folder for each checkpoint.
      suites: names of SUITES; (): by each checkpoint's kind.
    Returns: what evaluation.json says: {"checkpoints": [{"name", "checkpoint", "step", "objective", and the values
      of each suite under its name}]}.
    Raises: InputError if a checkpoint, its data or weights are not there; and, after all is written, if a model
      does not do what it is asked.
    """
    subjects = name_subjects(checkpoints, out)
    wanted = {subject.name: choose(subject, suites) for subject in subjects}
    for subject in subjects:
        for name in wanted[subject.name]:
            SUITES[name].check(subject, options)
    results: dict[str, dict[str, dict]] = {}
    with jax.set_mesh(make_mesh(mesh)):
        for subject in subjects:
            for name in wanted[subject.name]:
                values = measured(name, SUITES[name], subject, options, console)
                results.setdefault(name, {})[subject.name] = values
    folders = {subject.name: subject.out for subject in subjects}
    result = {
        "checkpoints": [
            {
                "name": subject.name,
                "checkpoint": str(subject.workdir),
                "step": subject.step,
                "objective": subject.settings.objective,
                **{name: results[name][subject.name] for name in wanted[subject.name]},
            }
            for subject in subjects
        ]
    }

    def tell():
        # By the first process alone, which has read the samples; what it raises, all raise.
        sections = [section for name in results for section in SUITES[name].show(results[name], folders)]
        with atomic_write(out / "evaluation.json") as temporary:
            temporary.write_text(json.dumps(result, indent=1))
        summary = "; ".join(f"{s.name}: {s.settings.objective} after {s.step:,} updates" for s in subjects)
        write_page(out / "index.html", f"Evaluation of {', '.join(folders)}", summary, sections)
        faults = [
            f"{name}: {fault}"
            for of in results.values()
            for name, v in of.items()
            for fault in v.get("faults", ())
        ]
        if faults:
            raise InputError(f"{'; '.join(faults)}. All that was measured is in {out / 'index.html'}")

    run_on_first_host(tell)
    return result


def name_subjects(checkpoints: Sequence[pathlib.Path], out: pathlib.Path) -> list[Subject]:
    """The checkpoints, under names that differ and are folders of `out`.

    Raises: InputError if one has none, or is named twice.
    """
    paths = [pathlib.Path(path) for path in checkpoints]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"--checkpoint={path}: is named twice")
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = ["-".join(part for part in path.parts if part not in ("/", "..", ".")) for path in paths]
    return [open_subject(path, name, out / name) for path, name in zip(paths, names, strict=True)]


def choose(subject: Subject, suites: Sequence[str]) -> tuple[str, ...]:
    """The suites for a checkpoint. Raises: InputError for one that is unknown or can't be measured of it."""
    objective = subject.settings.objective
    for name in suites:
        if name not in SUITES:
            raise InputError(f"--suite: no suite {name!r}, {did_you_mean(name, SUITES)}")
        if objective not in SUITES[name].objectives:
            fit = ", ".join(n for n, suite in SUITES.items() if objective in suite.objectives)
            raise InputError(f"--suite={name}: can't be measured of {subject.workdir}, a {objective}; {fit} can")
    return tuple(dict.fromkeys(suites)) or DEFAULT[objective]
