"""Decisions of an evaluation: requirements, a baseline to hold, and the sentence that a comparison comes to."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence

from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, read_object
from sora_jax.evaluate.benchmark import Benchmark
from sora_jax.evaluate.verdict.numbers import find_number, numbers_of, short
from sora_jax.evaluate.verdict.statistics import Comparison, Number, compare

FAR = 100_000  # samples; if more are needed, there is nothing to tell
COMPARE = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to come of an evaluation beside its page.

    Args:
      formats: "markdown", "csv" or "junit" -> a file, "-" for standard output.
      require: such as "shapes.all >= 0.97"; every subject must meet each.
      lower_end: whether the interval must meet it, and not the value alone.
      baseline: an evaluation.json whose first subject every subject must not be worse than; "": none.
      best: the measure by which the best subject is marked; "": the overall one of the first suite.
      command: the command line, for the report.
      judge: whether to raise what is not good enough; the report says it in any case.
    """

    formats: Mapping[str, str] = dataclasses.field(default_factory=dict)
    require: tuple[str, ...] = ()
    lower_end: bool = False
    baseline: str = ""
    best: str = ""
    command: str = ""
    judge: bool = True


@dataclasses.dataclass(frozen=True)
class Check:
    """One decision about one subject: what was asked, whether it holds, and the numbers."""

    subject: str
    asked: str
    holds: bool
    found: str


def parse_requirement(text: str) -> tuple[str, str, float]:
    """(name, operator, bound) of "NAME >= NUMBER". Raises: InputError."""
    found = re.fullmatch(r"\s*([\w.+-]+?)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*(%?)\s*", text)
    try:
        bound = float(found[3]) / (100 if found[4] else 1)
    except (TypeError, ValueError):
        raise InputError(
            f'--require={text!r}: write a measure, >= or <=, and a number: "shapes.all >= 0.97"'
        ) from None
    return found[1], found[2], bound


def read_baseline(path: str) -> dict:
    """The first subject of an earlier evaluation.json. Raises: InputError if it is none."""
    content = read_object(as_path(path))
    if "version" not in content or not content.get("checkpoints"):
        raise InputError(f"--baseline={path}: is no evaluation.json with a subject in it")
    return content["checkpoints"][0]


def check_requirements(subject: str, numbers: Mapping[str, Number], wanted: Wanted) -> list[Check]:
    """Whether a subject meets each requirement. Raises: InputError for an unknown measure."""
    made = []
    for text in wanted.require:
        name, sign, bound = parse_requirement(text)
        number = numbers[find_number(name, numbers, f"--require={text!r}")]
        end = number.low if sign in (">=", ">") else number.high
        value = end if wanted.lower_end and end is not None else number.value
        words = "" if number.low is None else f", 95 % interval {number.low:.4g} to {number.high:.4g}"
        made.append(Check(subject, text, bool(COMPARE[sign](value, bound)), f"{number.value:.4g}{words}"))
    return made


def check_baseline(
    subject: str, results: Mapping[str, dict], benchmarks: Mapping[str, Benchmark], baseline: Mapping
) -> list[Check]:
    """Whether a subject is no worse than a baseline in each judged measure of the suites that both have.

    A measure of samples is worse if a paired comparison says so; one without samples if its value is.
    """
    made = []
    for suite, values in results.items():
        if suite not in baseline:
            continue
        benchmark, before = benchmarks[suite], baseline[suite]
        asked = f"{suite}: no worse than the baseline"
        found = compare(benchmark.samples(before), benchmark.samples(values), benchmark.better)
        for one in found:
            if one.measure in benchmark.better:
                words = f"{one.a:.4g} before, {one.b:.4g} now, {difference_text(one)}"
                made.append(Check(subject, f"{short(suite, one.measure)}: {asked}", one.better != "a", words))
        compared = {short(suite, one.measure) for one in found}
        now, then = (numbers_of(suite, benchmark, side) for side in (values, before))
        for name in [name for name in now if name in then and name not in compared and now[name].better]:
            number, old = now[name], then[name].value
            best = number.value
            if number.low is not None:  # other samples: the interval must reach the old value
                best = number.high if number.better == "higher" else number.low
            holds = best >= old if number.better == "higher" else best <= old
            made.append(
                Check(subject, f"{name}: {asked}", bool(holds), f"{old:.4g} before, {number.value:.4g} now")
            )
    if not made:
        raise InputError(f"--baseline: has no measure in common with {', '.join(results)}; take its --suite")
    return made


def difference_text(one: Comparison) -> str:
    """ "+4.2 points (1.0 to 7.5)" for a share, "-0.01 (-0.02 to -0.003)" for another measure."""
    scale, unit, digits = (100, " points", "+.1f") if one.share else (1, "", "+.3g")
    low, high = (f"{scale * end:{digits}}" for end in (one.low, one.high))
    return f"{scale * one.difference:{digits}}{unit} ({low} to {high})"


def verdict_sentence(a: str, b: str, suite: str, found: Sequence[Comparison], better: Mapping[str, str]) -> str:
    """What a comparison comes to: which subject is better in what, and how many samples would tell the rest."""
    judged = [one for one in found if one.measure in better]
    if not judged:
        return f"{suite}: {a} and {b} have no sample in common that is judged."
    parts = []
    for side, name, other in (("b", b, a), ("a", a, b)):
        names = [one.measure for one in judged if one.better == side]
        if names:
            parts.append(f"{name} is better than {other} in {_listed(names)}")
    rest = [one for one in judged if not one.better]
    if rest:
        count = max(one.of for one in found)
        beginning = "for the rest" if parts else f"between {a} and {b},"
        parts.append(f"{beginning} {count:,} samples can't tell")
        # A measure that few samples have takes more of them.
        needed = {one.measure: math.ceil(one.needed * count / one.of) for one in rest if one.needed}
        nearest = min(needed, key=lambda name: needed[name], default="")
        if not needed:
            parts.append("they are equal")
        elif count < needed[nearest] < FAR:
            parts.append(f"about {needed[nearest]:,} would, in {nearest}")
        elif needed[nearest] >= FAR:
            parts.append(f"nor would {FAR:,}")
    return f"{suite}: {'; '.join(parts)}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def as_json(value):
    """Dataclasses, and lists and dicts of them, as JSON holds them."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))
