"""The numbers of an evaluation under short names, "shapes.all_together", for requirements, tables and curves."""

from collections.abc import Mapping

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.evaluate.benchmark import Benchmark
from sora_jax.evaluate.verdict.statistics import Number, number_of


def numbers_of(suite: str, benchmark: Benchmark, values: dict) -> dict[str, Number]:
    """Every measure of a suite's values, by its short name."""
    samples = benchmark.samples(values)
    measures = dict.fromkeys(name for sample in samples for name in sample.values)
    made = {short(suite, name): number_of(samples, name, benchmark.better.get(name, "")) for name in measures}
    for name, value in benchmark.figures(values).items():
        made[short(suite, name)] = Number(value, better=benchmark.better.get(name.split(",")[0], ""))
    return made


def short(suite: str, measure: str) -> str:
    return f"{suite}.{measure.lower().replace(', ', '_').replace(' ', '_')}"


def find_number(name: str, known: Mapping[str, Number], where: str) -> str:
    """The full name of a number, from it or from an unambiguous beginning of it. Raises: InputError."""
    if name in known:
        return name
    begins = [full for full in known if full.startswith(name)]
    if len(begins) == 1:
        return begins[0]
    if begins:
        raise InputError(f"{where}: {name} may be {' or '.join(begins)}")
    raise InputError(f"{where}: no measure {name!r}, {did_you_mean(name, known)}")


def shown(number: Number, *, interval: bool = True) -> str:
    """A number for people, "87.5 % (52.9 to 97.8)"."""
    scale, unit = (100, " %") if number.share else (1, "")
    digits = ".1f" if number.share else ".4g"
    text = f"{scale * number.value:{digits}}{unit}"
    if not interval or number.low is None:
        return text
    return f"{text} ({scale * number.low:{digits}} to {scale * number.high:{digits}})"
