"""Intervals of measures, and paired comparisons of two subjects on the same prompts and noise."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from sora_jax.evaluate.benchmark import Sample

RESAMPLES = 10_000
BLOCK = 1000  # resamples at a time, to bound memory
LEVEL = 0.05  # of the tests; the intervals hold 95 %
POWER = 0.8  # with which the wanted number of samples would tell the difference


@dataclasses.dataclass(frozen=True)
class Number:
    """A measure of a subject.

    Args:
      low, high: 95 % interval; None: there is none.
      of: number of samples; 0: the measure is of all together.
      better: "higher", "lower" or "" if it is not judged.
      share: whether it is a share of right samples.
    """

    value: float
    low: float | None = None
    high: float | None = None
    of: int = 0
    better: str = ""
    share: bool = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference b - a of a measure between two subjects, on the samples that both have.

    Args:
      low, high: 95 % interval of the difference.
      p: of no difference, corrected for the number of measures (Holm).
      of: number of pairs.
      needed: number of pairs that would tell the difference with a power of 80 %; None: there is no difference.
      better: "a", "b", "" if it can't be told, "differs" for a measure that is not judged.
    """

    measure: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    of: int
    needed: int | None
    better: str
    share: bool


def number_of(samples: Sequence[Sample], measure: str, better: str = "") -> Number:
    """The mean of a measure with its interval: Wilson's for a share, by bootstrap over groups for the rest.

    Of a share each group counts as one sample, however many it has.
    """
    there = [sample for sample in samples if measure in sample.values]
    values = np.array([float(sample.values[measure]) for sample in there])
    weights = np.array([sample.weight for sample in there])
    share = all(isinstance(sample.values[measure], bool) for sample in there)
    groups = [sample.group or sample.key for sample in there]
    mean = float(np.average(values, weights=weights))
    if share:
        low, high = wilson(mean, len(set(groups)))
    else:
        low, high = _interval(_resampled([values * weights], weights, groups)[0])
    return Number(mean, float(low), float(high), len(there), better, share)


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent samples. Source: Wilson 1927."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def compare(a: Sequence[Sample], b: Sequence[Sample], better: Mapping[str, str]) -> list[Comparison]:
    """Comparisons of every measure that both subjects have on samples of equal keys, corrected together.

    Shares are tested by McNemar's exact test where each prompt has one sample, everything else by sign flips over
    prompts; intervals are of a bootstrap over prompts.
    Source: McNemar 1947; Holm 1979; Efron and Tibshirani 1993, chapter 16.
    """
    others = {sample.key: sample for sample in b}
    pairs = [(sample, others[sample.key]) for sample in a if sample.key in others]
    measures = dict.fromkeys(name for one, other in pairs for name in one.values if name in other.values)
    found = [_compare(pairs, measure) for measure in measures]
    corrected = holm([comparison.p for comparison in found])
    return [_judged(one, p, better.get(one.measure, "")) for one, p in zip(found, corrected, strict=True)]


def _compare(pairs, measure) -> Comparison:
    there = [(x, y) for x, y in pairs if measure in x.values and measure in y.values]
    a, b = (np.array([float(pair[side].values[measure]) for pair in there]) for side in (0, 1))
    weights = np.array([x.weight for x, _ in there])
    groups = [x.group or x.key for x, _ in there]
    share = all(isinstance(sample.values[measure], bool) for pair in there for sample in pair)
    difference = float(np.average(b - a, weights=weights))
    (drawn,) = _resampled([(b - a) * weights], weights, groups)
    low, high = _interval(drawn)
    if share and len(set(groups)) == len(groups):
        p = mcnemar(int(np.sum(a > b)), int(np.sum(b > a)))
    else:
        p = flipped((b - a) * weights, groups)
    return Comparison(
        measure,
        float(np.average(a, weights=weights)),
        float(np.average(b, weights=weights)),
        difference,
        low,
        high,
        float(p),
        len(there),
        samples_needed(difference, float(drawn.std()), len(there)),
        "",
        share,
    )


def _judged(found: Comparison, p: float, better: str) -> Comparison:
    winner = ""
    if p < LEVEL and found.difference:
        winner = "b" if (found.difference > 0) == (better == "higher") else "a"
        winner = winner if better else "differs"
    return dataclasses.replace(found, p=p, better=winner)


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided exact p of McNemar's test, from the numbers of pairs in which one side alone is right."""
    count = only_a + only_b
    return float(scipy.stats.binomtest(only_a, count).pvalue) if count else 1.0


def flipped(differences: np.ndarray, groups: Sequence[str]) -> float:
    """The p of no difference, by flipping at random the sign of all differences of a group.

    Source: Fisher 1935; the smallest p of n groups is about 2 / 2^n, so that few groups tell nothing by chance.
    """
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, differences)
    draw, reached = np.random.default_rng(0), 1
    for _ in range(RESAMPLES // BLOCK):
        signs = draw.choice((-1.0, 1.0), (BLOCK, len(sums)))
        reached += np.sum(np.abs(signs @ sums) >= abs(sums.sum()) * (1 - 1e-9))
    return float(reached / (1 + RESAMPLES))


def holm(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down method, in the given order."""
    corrected, most = [1.0] * len(p), 0.0
    for rank, n in enumerate(np.argsort(p, kind="stable")):
        most = max(most, min(1.0, (len(p) - rank) * p[n]))
        corrected[n] = most
    return corrected


def samples_needed(difference: float, error: float, count: int) -> int | None:
    """Number of samples that tell a difference, given its standard error with `count` samples; None if it is 0."""
    if not difference:
        return None
    z = scipy.stats.norm.ppf(1 - LEVEL / 2) + scipy.stats.norm.ppf(POWER)
    return max(2, math.ceil(count * (z * error / difference) ** 2))


def _resampled(sums: Sequence[np.ndarray], weights: np.ndarray, groups: Sequence[str]) -> list[np.ndarray]:
    """Bootstrap means over groups of samples, [RESAMPLES] for each array of weighted values.

    The draws are always the same.
    """
    _, index = np.unique(groups, return_inverse=True)
    count = index.max() + 1
    by_group = [np.bincount(index, values, count) for values in sums]
    total = np.bincount(index, weights, count)
    draw = np.random.default_rng(0)
    made: list[list] = [[] for _ in sums]
    for _ in range(RESAMPLES // BLOCK):
        times = draw.multinomial(count, np.full(count, 1 / count), BLOCK)
        for values, found in zip(by_group, made, strict=True):
            found.append(times @ values / (times @ total))
    return [np.concatenate(found) for found in made]


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
