"""The report of an evaluation: numbers, comparisons and checks, as JSON, tables and a page."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Mapping, Sequence

import jax
import rich.console

import sora_jax
from sora_jax.core.storage import atomic_write
from sora_jax.data.media.video import probe
from sora_jax.evaluate.benchmark import Benchmark, Options, Sample, Subject, read_video
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.evaluate.samples import write_preview
from sora_jax.evaluate.verdict import formats
from sora_jax.evaluate.verdict.decisions import (
    Check,
    Wanted,
    as_json,
    check_baseline,
    check_requirements,
    difference_text,
    verdict_sentence,
)
from sora_jax.evaluate.verdict.numbers import find_number, numbers_of, short, shown
from sora_jax.evaluate.verdict.statistics import Comparison, Number, compare
from sora_jax.report.figures import draw_course
from sora_jax.report.page import Clip, Pair, Pairs, Picture, Section, Table, write_page

VERSION = 1  # of evaluation.json, see docs/reference/evaluation_json.md
PAIRS = 8  # on the page, for each comparison
MANY = 4  # subjects from which the page shows the samples of two of them only
PANELS = 12  # of a plot, at most


@dataclasses.dataclass(frozen=True)
class Results:
    """The values of an evaluation.

    Args:
      values: suite -> subject -> what the benchmark measured.
      baseline: subject of an earlier evaluation.json.
    """

    subjects: Sequence[Subject]
    benchmarks: Mapping[str, Benchmark]
    values: Mapping[str, Mapping[str, dict]]
    options: Options
    wanted: Wanted
    baseline: dict | None = None

    def of(self, subject: Subject) -> dict[str, dict]:
        """The values of one subject, by suite."""
        return {suite: found[subject.name] for suite, found in self.values.items() if subject.name in found}

    @functools.cached_property
    def numbers(self) -> dict[str, dict[str, Number]]:
        """Every number, by subject and short name."""
        return {
            subject.name: {
                name: number
                for suite, values in self.of(subject).items()
                for name, number in numbers_of(suite, self.benchmarks[suite], values).items()
            }
            for subject in self.subjects
        }

    @functools.cached_property
    def comparisons(self) -> list[tuple[str, str, str, list[Comparison]]]:
        """(suite, first subject, another, comparisons) of every suite that both have."""
        first, *others = self.subjects
        if len(others) >= MANY:  # such as all steps of a run: the first beside the last
            others = others[-1:]
        made = []
        for suite, benchmark in self.benchmarks.items():
            values = self.values[suite]
            for other in others:
                if first.name in values and other.name in values:
                    a, b = (benchmark.samples(values[name]) for name in (first.name, other.name))
                    if found := compare(a, b, benchmark.better):
                        made.append((suite, first.name, other.name, found))
        return made

    @property
    def sentences(self) -> list[str]:
        return [
            verdict_sentence(a, b, suite, found, self.benchmarks[suite].better)
            for suite, a, b, found in self.comparisons
        ]

    @functools.cached_property
    def checks(self) -> list[Check]:
        made = []
        for subject in self.subjects:
            made += check_requirements(subject.name, self.numbers[subject.name], self.wanted)
            if self.baseline:
                made += check_baseline(subject.name, self.of(subject), self.benchmarks, self.baseline)
        return made

    @functools.cached_property
    def best(self) -> tuple[str, str] | None:
        """(measure, name of the subject that is best in it); None for one subject, or if nothing is judged."""
        known = {name: number for found in self.numbers.values() for name, number in found.items()}
        judged = [name for name, number in known.items() if number.better]
        measure = find_number(self.wanted.best, known, "--best") if self.wanted.best else self._overall(judged)
        if len(self.subjects) < 2 or measure not in judged:
            return None
        sign = 1 if known[measure].better == "higher" else -1
        there = {name: sign * found[measure].value for name, found in self.numbers.items() if measure in found}
        return measure, max(there, key=lambda name: there[name])

    def _overall(self, judged: Sequence[str]) -> str | None:
        """The measure by which subjects are ranked: the last one with a direction of the first suite."""
        suite, benchmark = next(iter(self.benchmarks.items()))
        overall = [short(suite, measure) for measure in benchmark.better]
        return next((name for name in [*reversed(overall), *judged] if name in judged), None)

    def summary(self) -> dict:
        """The content of evaluation.json."""
        return as_json(
            {
                "format": "sora_jax evaluation",
                "version": VERSION,
                "run": described_run(self.options, self.wanted),
                "checkpoints": [
                    {
                        "name": subject.name,
                        "checkpoint": subject.described()["path"],
                        "step": subject.step,
                        "objective": subject.objective,
                        "folder": subject.out.name,
                        "settings": subject.described(),
                        "numbers": self.numbers[subject.name],
                        **self.of(subject),
                    }
                    for subject in self.subjects
                ],
                "comparisons": [
                    {"suite": suite, "a": a, "b": b, "sentence": sentence, "measures": found}
                    for (suite, a, b, found), sentence in zip(self.comparisons, self.sentences, strict=True)
                ],
                "best": None if self.best is None else {"measure": self.best[0], "subject": self.best[1]},
                "checks": self.checks,
            }
        )


def described_run(options: Options, wanted: Wanted) -> dict:
    """What the results depend on beside the subjects."""
    prompts = "\n".join(options.prompts)
    chosen = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name not in ("prompts", "sampler") and getattr(options, field.name) != field.default
    }
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": wanted.command,
        "seed": options.seed,
        "prompts": {"count": len(options.prompts), "sha256": hashlib.sha256(prompts.encode()).hexdigest()}
        if options.prompts
        else "of each suite",
        "options": chosen,
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "versions": {"sora_jax": sora_jax.__version__, "jax": jax.__version__},
    }


def write_report(results: Results, out: pathlib.Path, console: rich.console.Console) -> dict:
    """Write evaluation.json, index.html and the other formats, and print the table. Returns: evaluation.json."""
    summary = results.summary()
    folders = {subject.name: subject.out for subject in results.subjects}
    pictured = list(folders)
    if len(folders) > MANY:
        pictured = list(dict.fromkeys([results.best[1] if results.best else pictured[0], pictured[-1]]))
    sections = [
        *_verdict(results, folders, out),
        *(
            section
            for suite, found in results.values.items()
            if (there := {name: found[name] for name in pictured if name in found})
            for section in results.benchmarks[suite].show(there, {name: folders[name] for name in there})
        ),
        _settings(results, summary["run"]),
    ]
    with atomic_write(out / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1))
    line = "; ".join(f"{subject.name}: {subject.about}" for subject in results.subjects)
    names = list(folders)
    if len(names) > MANY:
        line = f"{len(names)} subjects, from {names[0]} to {names[-1]}"
    title = f"Evaluation of {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    write_page(out / "index.html", title, line, sections)
    console.print(formats.terminal(results.numbers))
    for sentence in results.sentences:
        console.print(sentence)
    if results.best:
        console.print(f"best in {results.best[0]}: {results.best[1]}")
    about = f"sora_jax {sora_jax.__version__}, {summary['run']['date']}: {line}"
    formats.write_formats(results.wanted.formats, results.numbers, results.sentences, results.checks, about)
    return summary


def _verdict(results: Results, folders: Mapping[str, pathlib.Path], out: pathlib.Path) -> list[Section]:
    """Sections of the decisions: checks, comparisons, and the videos that differ most."""
    made = []
    if results.checks:
        rows = [(c.subject, c.asked, c.found, "yes" if c.holds else "✗ no") for c in results.checks]
        failed = sum(not check.holds for check in results.checks)
        note = f"{failed} of {len(rows)} do not hold." if failed else "All of them hold."
        made.append(Section("Requirements", note, [Table(("subject", "asked", "found", "holds"), rows)]))
    parts: list = []
    if course := _course(results, out):
        parts.append(course)
    for suite, a, b, found in results.comparisons:
        rows = [
            (
                one.measure,
                *(shown(Number(value, share=one.share)) for value in (one.a, one.b)),
                difference_text(one),
                f"{one.p:.2g}",
                {"a": a, "b": b, "": "can't tell", "differs": "they differ"}[one.better],
                one.needed if not one.better and one.needed else None,
            )
            for one in found
        ]
        header = ("measure", a, b, f"{b} − {a}", "p", "better", "samples that would tell")
        parts.append(Table(header, rows, caption=f"{suite}, {found[0].of:,} pairs"))
        if pairs := _pairs(results, suite, (a, b), folders):
            parts.append(Pairs((a, b), pairs))
    if parts:
        note = " ".join(results.sentences)
        if len(folders) > MANY:
            note += f" Of the {len(folders)} subjects the samples of two are shown; evaluation.json has all."
        if results.best:
            note += f" Best in {results.best[0]}: {results.best[1]}."
        note += (
            " Differences are of pairs with the same prompt and noise; in brackets stands the 95 % interval; p is "
            "corrected for the number of measures."
        )
        made.append(Section("Verdict", note.strip(), parts))
    return made


def _pairs(results, suite, names, folders) -> list[Pair]:
    """Videos of the same prompt, those first in which the two differ most."""
    benchmark = results.benchmarks[suite]
    a, b = (
        {sample.key: sample for sample in benchmark.samples(results.values[suite][name]) if sample.video}
        for name in names
    )
    both = [key for key in a if key in b]
    spread = {}
    for measure in benchmark.better:
        there = [float(s[k].values[measure]) for s in (a, b) for k in both if measure in s[k].values]
        spread[measure] = (max(there) - min(there) if there else 0) or 1

    def disagreement(key):
        x, y = a[key].values, b[key].values
        return sum(abs(float(x[m]) - float(y[m])) / spread[m] for m in benchmark.better if m in x and m in y)

    chosen = sorted(both, key=disagreement, reverse=True)[:PAIRS]
    made = []
    for key in chosen:
        clips = _clip(folders[names[0]], a[key]), _clip(folders[names[1]], b[key])
        made.append(Pair(a[key].prompt, clips))
    return made


def _clip(folder: pathlib.Path, sample: Sample) -> Clip:
    path = folder / sample.video
    frames = read_video(path)
    preview = write_preview(folder, sample.video, frames, probe(path).fps or 1.0, sample.prompt)
    values = [f"{k} {v:.3g}" for k, v in sample.values.items() if not isinstance(v, bool)]
    return Clip(path, folder / preview, sample.prompt, sample.note or ", ".join(values[:3]))


def _course(results: Results, out: pathlib.Path) -> Picture | None:
    """A plot of the numbers over what varies between the subjects: the step, or one sampling setting."""
    subjects = [subject for subject in results.subjects if isinstance(subject, CheckpointUnderTest)]
    if len(subjects) < 3:  # two points make no curve
        return None
    settings = [{"step": s.step} | dataclasses.asdict(s.settings.sample) for s in subjects]
    varied = [key for key in settings[0] if len({str(one[key]) for one in settings}) > 1]
    if len(varied) != 1 or len({subject.workdir for subject in subjects}) > 1:
        return None
    names = [name for name, n in results.numbers[subjects[0].name].items() if n.better][:PANELS]
    panels = {
        name: [
            (one[varied[0]], n.value, n.low, n.high)
            for s, one in zip(subjects, settings, strict=True)
            if (n := results.numbers[s.name].get(name))
        ]
        for name in names
    }
    label = varied[0] if varied[0] == "step" else f"--{varied[0].replace('_', '-')}"
    path = out / "course.png"
    draw_course(path, panels, label)
    return Picture(path, f"Each measure over {label}, with its 95 % interval.")


def _settings(results: Results, run: Mapping) -> Section:
    """The settings that the results depend on."""
    facts = {"date": run["date"], "command": run["command"] or None, "seed": str(run["seed"])}
    prompts = run["prompts"]
    facts["prompts"] = prompts if isinstance(prompts, str) else f"{prompts['count']}, {prompts['sha256'][:16]}"
    facts |= {f"--{key}": str(value) for key, value in run["options"].items()}
    facts["devices"] = f"{run['devices']}, {run['processes']} processes"
    facts |= run["versions"]
    columns = []
    for subject in results.subjects:
        described = dict(subject.described())
        columns.append(described | described.pop("sample", {}))
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [(key.replace("_", " "), *(_text(column.get(key)) for column in columns)) for key in keys]
    return Section(
        "Settings",
        "What the numbers depend on; evaluation.json holds the same.",
        [
            Table(("", "value"), [(key, value) for key, value in facts.items() if value]),
            Table(("", *(subject.name for subject in results.subjects)), rows),
        ],
    )


def _text(value) -> str | None:
    return None if value in (None, "") else str(value)
