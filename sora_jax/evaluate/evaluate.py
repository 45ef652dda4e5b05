"""Benchmarks of one or more subjects, as JSON, as tables, and as a page side by side."""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import rich.console

from sora_jax.cluster.agreement import raise_on_all_hosts, run_on_first_host
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError, NotGoodEnough, did_you_mean
from sora_jax.core.mesh import make_mesh
from sora_jax.core.storage import explain_os_errors, in_bucket, remove_stale_temporaries, temporary_path
from sora_jax.evaluate.benchmark import Benchmark, Options, Subject, measure_once
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest, write_kept
from sora_jax.evaluate.results import Results, write_report
from sora_jax.evaluate.subjects import open_subjects
from sora_jax.evaluate.verdict.decisions import Wanted, parse_requirement, read_baseline

DEFAULT_SUITE = {"flow": ("loss",), "autoencoder": ("reconstruction",), "videos": ("temporal",)}  # by objective
FLAGS = {"sizes": "size"}  # of options whose flag has another name


def evaluate(
    subjects: Sequence[Subject | pathlib.Path],
    out: pathlib.Path,
    *,
    benchmarks: Mapping[str, Benchmark],
    suite: Sequence[str] = (),
    options: Options,
    mesh: MeshSettings,
    console: rich.console.Console,
    wanted: Wanted | None = None,
) -> dict:
    """Run benchmarks on subjects and write a report; values that an earlier call kept are not measured again.

    Args:
      subjects: as `open_subjects` gives them, or workdirs.
      out: folder for evaluation.json, index.html, and a folder for each subject.
      benchmarks: all that there are, by name.
      suite: names of those to run; (): by each subject's objective.
    Returns: the content of evaluation.json (docs/reference/evaluation_json.md).
    Raises: InputError if a checkpoint, its data or weights are absent, or `out` can't be written, before anything
      is measured; NotGoodEnough, after everything is written, if a model fails a benchmark or what is wanted.
    """
    wanted = wanted or Wanted()
    paths = [str(subject) for subject in subjects if isinstance(subject, os.PathLike)]
    opened = [subject for subject in subjects if not isinstance(subject, os.PathLike)]
    opened += open_subjects(paths, (), "", out) if paths else []
    chosen = {subject.name: choose(subject, suite, benchmarks) for subject in opened}
    measured = {name for names in chosen.values() for name in names}
    check_options(options, measured, benchmarks)
    for subject in opened:
        for name in chosen[subject.name]:
            benchmarks[name].check(subject, options)
    for text in wanted.require:
        name, _, _ = parse_requirement(text)
        if name.split(".")[0] not in measured:
            raise InputError(f"--require={text!r}: {name} is none of --suite={','.join(sorted(measured))}")
    baseline = read_baseline(wanted.baseline) if wanted.baseline else None
    run_on_first_host(lambda: check_writable(out))
    values: dict[str, dict[str, dict]] = {}
    devices = make_mesh(mesh)
    with jax.set_mesh(devices):
        for subject in opened:
            for name in chosen[subject.name]:
                found = measure_once(name, benchmarks[name], subject, options, console)
                values.setdefault(name, {})[subject.name] = found
            vars(subject).pop("generator", None)  # free the memory for the next one's
            if isinstance(subject, CheckpointUnderTest):
                run_on_first_host(functools.partial(write_kept, subject))
    results = Results(opened, {name: benchmarks[name] for name in values}, values, options, wanted, baseline)
    summary: dict = {}
    # By the first process alone, which has read the samples; if it raises, all do.
    run_on_first_host(lambda: summary.update(write_report(results, out, console)))
    raise_on_all_hosts(lambda: judge(results.values, summary, out, wanted), (NotGoodEnough,))
    return summary or {
        "checkpoints": [{name: by[s.name] for name, by in values.items() if s.name in by} for s in opened]
    }


def choose(subject: Subject, suite: Sequence[str], benchmarks: Mapping[str, Benchmark]) -> tuple[str, ...]:
    """Names of the benchmarks to run. Raises: InputError for an unknown one, or one that does not apply."""
    objective = subject.objective
    for name in suite:
        if name not in benchmarks:
            raise InputError(f"--suite: no benchmark {name!r}, {did_you_mean(name, benchmarks)}")
        if objective not in benchmarks[name].objectives:
            fit = ", ".join(n for n, benchmark in benchmarks.items() if objective in benchmark.objectives)
            path = subject.described()["path"]
            kind = "folder of videos" if objective == "videos" else objective
            raise InputError(f"--suite={name}: does not apply to {path}, a {kind}; {fit} do")
    if not suite and objective not in DEFAULT_SUITE:
        raise InputError(f"{subject.described()['path']}: a model of objective {objective} has no default --suite")
    return tuple(dict.fromkeys(suite)) or DEFAULT_SUITE[objective]


def check_options(options: Options, suite: set[str], benchmarks: Mapping[str, Benchmark]):
    """Raise InputError for an option that is given and that no chosen benchmark uses."""
    used = {use for name in suite for use in benchmarks[name].uses} | {"sampler"}
    for field in dataclasses.fields(options):
        if field.name in used or getattr(options, field.name) == field.default:
            continue
        takers = ", ".join(name for name, benchmark in benchmarks.items() if field.name in benchmark.uses)
        flag = FLAGS.get(field.name, field.name)
        raise InputError(f"--{flag}: --suite={','.join(sorted(suite))} does not use it; {takers} do")


def check_writable(out: pathlib.Path):
    """Make the folder, remove what ended runs left in it, and try to write. Raises: InputError."""
    with explain_os_errors(out):
        if out.exists() and not out.is_dir():
            raise InputError(f"--out={out}: is a file; name a folder")
        try:
            out.mkdir(parents=True, exist_ok=True)
            trial = temporary_path(out / "trial")
            trial.touch()
            trial.unlink()
        except FileNotFoundError:  # as in /proc
            raise InputError(f"--out={out}: no folder can be made there") from None
    if in_bucket(out):  # which has no temporary files
        return
    for folder in itertools.chain([out], (path for path in out.rglob("*") if path.is_dir())):
        remove_stale_temporaries(folder)


def judge(values: Mapping[str, Mapping[str, dict]], summary: dict, out: pathlib.Path, wanted: Wanted):
    """Raise NotGoodEnough for faults of models and for checks that do not hold, if that is wanted."""
    wrong = [
        f"{name}: {fault}"
        for by_subject in values.values()
        for name, found in by_subject.items()
        for fault in found.get("faults", ())
    ]
    wrong += [
        f"{check['subject']}: {check['asked']}: {check['found']}"
        for check in summary.get("checks", ())
        if not check["holds"]
    ]
    if wrong and wanted.judge:
        raise NotGoodEnough(f"{'; '.join(wrong)}. The whole report is {out / 'index.html'}")
