"""Benchmarks of one or more checkpoints, as JSON, as tables, and as a page side by side."""

import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import rich.console

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.mesh import make_mesh
from sora_jax.core.storage import atomic_write
from sora_jax.evaluate.benchmark import Benchmark, Options, measure_once
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest, open_checkpoint
from sora_jax.evaluate.samples import captions_of, cells, make_samples, repeat_prompts
from sora_jax.report.page import write_page

DEFAULT_SUITE = {"flow": ("loss",), "autoencoder": ("reconstruction",)}  # by training objective
VOTED = 32  # prompts that people are shown


def evaluate(
    workdirs: Sequence[pathlib.Path],
    out: pathlib.Path,
    *,
    benchmarks: Mapping[str, Benchmark],
    suite: Sequence[str] = (),
    options: Options,
    mesh: MeshSettings,
    console: rich.console.Console,
) -> dict:
    """Run benchmarks on checkpoints and write a report; values that an earlier call kept are not measured again.

    Args:
      workdirs: of training runs, or folders of released models.
      out: folder for evaluation.json, index.html, and a folder for each checkpoint.
      benchmarks: all that there are, by name.
      suite: names of those to run; (): by each checkpoint's objective.
    Returns: the content of evaluation.json: {"checkpoints": [{"name", "checkpoint", "step", "objective", and the
      values of each benchmark under its name}]}.
    Raises: InputError if a checkpoint, its data or weights are absent; and, after everything is written, if a
      model fails a benchmark.
    """
    checkpoints = name_checkpoints(workdirs, out)
    chosen = {checkpoint.name: choose(checkpoint, suite, benchmarks) for checkpoint in checkpoints}
    for checkpoint in checkpoints:
        for name in chosen[checkpoint.name]:
            benchmarks[name].check(checkpoint, options)
    results: dict[str, dict[str, dict]] = {}
    with jax.set_mesh(make_mesh(mesh)):
        for checkpoint in checkpoints:
            for name in chosen[checkpoint.name]:
                values = measure_once(name, benchmarks[name], checkpoint, options, console)
                results.setdefault(name, {})[checkpoint.name] = values
    summary = {"checkpoints": [_summary(checkpoint, results) for checkpoint in checkpoints]}
    # By the first process alone, which has read the samples; if it raises, all do.
    run_on_first_host(lambda: _write_report(checkpoints, benchmarks, results, summary, out))
    return summary


def videos_to_vote_on(
    workdirs: Sequence[pathlib.Path], out: pathlib.Path, *, options: Options, mesh: MeshSettings, console
) -> dict[str, list[tuple[str, pathlib.Path]]]:
    """Samples of the same prompts by every checkpoint: name -> (prompt, file) of each.

    Raises: InputError if a checkpoint is absent, or several sizes or lengths are asked for.
    """
    checkpoints = name_checkpoints(workdirs, out)
    prompts = captions_of(checkpoints[0], options)
    prompts = repeat_prompts(prompts, options.samples or min(len(prompts), VOTED))
    found = {}
    with jax.set_mesh(make_mesh(mesh)):
        for checkpoint in checkpoints:
            asked = cells(checkpoint, options)
            if len(asked) > 1:
                raise InputError("--vote: takes one size and one length; see --size and --frames")
            paths = make_samples(checkpoint, options, prompts, asked[0], console)
            found[checkpoint.name] = list(zip(prompts, paths, strict=True))
    return found


def name_checkpoints(workdirs: Sequence[pathlib.Path], out: pathlib.Path) -> list[CheckpointUnderTest]:
    """The checkpoints under different names, each a folder of `out`.

    Raises: InputError if a workdir has none, or is named twice.
    """
    paths = [pathlib.Path(path) for path in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"--checkpoint={path}: is named twice")
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = ["-".join(part for part in path.parts if part not in ("/", "..", ".")) for path in paths]
    return [open_checkpoint(path, name, out / name) for path, name in zip(paths, names, strict=True)]


def choose(
    checkpoint: CheckpointUnderTest, suite: Sequence[str], benchmarks: Mapping[str, Benchmark]
) -> tuple[str, ...]:
    """Names of the benchmarks to run. Raises: InputError for an unknown one, or one that does not apply."""
    objective = checkpoint.settings.objective
    for name in suite:
        if name not in benchmarks:
            raise InputError(f"--suite: no benchmark {name!r}, {did_you_mean(name, benchmarks)}")
        if objective not in benchmarks[name].objectives:
            fit = ", ".join(n for n, benchmark in benchmarks.items() if objective in benchmark.objectives)
            raise InputError(f"--suite={name}: does not apply to {checkpoint.workdir}, a {objective}; {fit} do")
    return tuple(dict.fromkeys(suite)) or DEFAULT_SUITE[objective]


def _summary(checkpoint, results) -> dict:
    """A checkpoint and the values of its benchmarks, for evaluation.json."""
    return {
        "name": checkpoint.name,
        "checkpoint": str(checkpoint.workdir),
        "step": checkpoint.step,
        "objective": checkpoint.settings.objective,
        **{name: values[checkpoint.name] for name, values in results.items() if checkpoint.name in values},
    }


def _write_report(checkpoints, benchmarks, results, summary, out):
    """Write evaluation.json and index.html. Raises: InputError, then, for models that fail a benchmark."""
    folders = {checkpoint.name: checkpoint.out for checkpoint in checkpoints}
    sections = [section for name in results for section in benchmarks[name].show(results[name], folders)]
    with atomic_write(out / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1))
    line = "; ".join(f"{c.name}: {c.settings.objective} after {c.step:,} updates" for c in checkpoints)
    write_page(out / "index.html", f"Evaluation of {', '.join(folders)}", line, sections)
    faults = [
        f"{name}: {fault}"
        for by_checkpoint in results.values()
        for name, values in by_checkpoint.items()
        for fault in values.get("faults", ())
    ]
    if faults:
        raise InputError(f"{'; '.join(faults)}. The whole report is {out / 'index.html'}")
