"""Votes of people on pairs of videos: a file of them, and what they say.

Each line of the file is a vote. Lines are only appended; a voter's last vote on a pair counts.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from sora_jax.core.errors import InputError
from sora_jax.report.page import Section, Table

LEFT, RIGHT, TIE = "left", "right", "tie"
RESAMPLES = 1000
STRENGTH = 400 / np.log(10)  # Elo's scale: 400 points are odds of 10
PRIOR = 0.5  # wins each way that every pair of subjects is given, so that a clean sweep has a finite strength


@dataclasses.dataclass(frozen=True)
class Vote:
    """A vote.

    Args:
      pair: name of the pair of videos.
      left, right: the subjects on either side.
      choice: LEFT, RIGHT or TIE.
      time: seconds since 1970.
    """

    voter: str
    pair: str
    prompt: str
    left: str
    right: str
    choice: str
    time: float

    @property
    def share(self) -> tuple[str, str, float]:
        """The two subjects in alphabetical order, and 1 if the first was chosen, 0 the second, 0.5 neither."""
        first, second = sorted((self.left, self.right))
        if self.choice == TIE:
            return first, second, 0.5
        return first, second, float((self.left if self.choice == LEFT else self.right) == first)


def append_vote(path: pathlib.Path, vote: Vote):
    """Add a vote to the file in one write; it is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(dataclasses.asdict(vote), ensure_ascii=False).encode() + b"\n"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line  # a line that a crash cut off stays alone
        os.write(file, line)
        os.fsync(file)
    finally:
        os.close(file)


def read_votes(path: pathlib.Path) -> list[Vote]:
    """The votes that count, in the order of their pairs and voters. A line that was cut off is left out.

    Raises: InputError for a line that is no vote.
    """
    votes: dict[tuple[str, str], Vote] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        try:
            vote = Vote(**values)
        except TypeError:
            raise InputError(f"{path}: line {number} is no vote; name another folder by --out") from None
        votes[vote.pair, vote.voter] = vote
    return list(votes.values())


def counts(votes: Sequence[Vote]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """{(first, second): (wins of the first, ties, wins of the second)} of all pairs of subjects with votes."""
    found: dict[tuple[str, str], list[int]] = {}
    for vote in votes:
        first, second, share = vote.share
        found.setdefault((first, second), [0, 0, 0])[round(2 * (1 - share))] += 1
    return {pair: (won, tied, lost) for pair, (won, tied, lost) in sorted(found.items())}


def strengths(votes: Sequence[Vote], *, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """{subject: (Bradley-Terry strength, lower and upper end of its 95 % interval)}, in points of Elo, mean 0.

    A tie is half a win for each. The interval is that of votes whose prompts are drawn anew.

    Source: Bradley & Terry 1952, Biometrika 39.
    """
    subjects = sorted({name for vote in votes for name in (vote.left, vote.right)})
    prompts = sorted({vote.prompt for vote in votes})
    wins = np.zeros((len(prompts), len(subjects), len(subjects)))
    for vote in votes:
        first, second, share = vote.share
        at, i, j = prompts.index(vote.prompt), subjects.index(first), subjects.index(second)
        wins[at, i, j] += share
        wins[at, j, i] += 1 - share
    best = _fit(wins.sum(axis=0))
    draw = np.random.default_rng(seed)
    weights = draw.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=RESAMPLES)
    drawn = np.stack([_fit(np.tensordot(row, wins, 1)) for row in weights])
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    return {name: (float(b), float(a), float(c)) for name, b, a, c in zip(subjects, best, low, high, strict=True)}


def _fit(wins: np.ndarray) -> np.ndarray:
    """The most likely strengths for wins[i, j] of i over j, by Newton's method."""
    n = len(wins)
    played = wins + wins.T
    wins = wins + PRIOR * (played > 0)
    played = wins + wins.T
    logits = np.zeros(n)
    for _ in range(50):
        chance = 1 / (1 + np.exp(logits[None] - logits[:, None]))
        gradient = (wins - played * chance).sum(axis=1)
        information = played * chance * (1 - chance)
        hessian = np.diag(information.sum(axis=1)) - information
        step = np.clip(np.linalg.pinv(hessian, hermitian=True) @ gradient, -2, 2)
        logits = logits + step - np.mean(logits + step)
        if np.abs(step).max() < 1e-9:
            break
    return STRENGTH * logits


def agreement(votes: Sequence[Vote]) -> tuple[float, float, int] | None:
    """How far voters agree on the pairs that several of them saw; None if there is none.

    Returns: (share of pairs of their votes that are equal, Krippendorff's alpha, number of these pairs).
    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", for nominal data.
    """
    by_pair: dict[str, list[float]] = {}
    for vote in votes:
        by_pair.setdefault(vote.pair, []).append(vote.share[2])
    several = [shares for shares in by_pair.values() if len(shares) > 1]
    if not several:
        return None
    equal = [a == b for shares in several for a, b in itertools.combinations(shares, 2)]
    total = sum(map(len, several))
    observed = sum(
        sum(a != b for a, b in itertools.permutations(shares, 2)) / (len(shares) - 1) for shares in several
    )
    amounts = [sum(shares.count(kind) for shares in several) for kind in (0.0, 0.5, 1.0)]
    expected = sum(a * b for a, b in itertools.permutations(amounts, 2)) / (total - 1)
    alpha = 1 - observed / expected if expected else 1.0
    return float(np.mean(equal)), float(alpha), len(equal)


def vote_sections(votes: Sequence[Vote]) -> list[Section]:
    """What the votes say, for a page."""
    if not votes:
        return []
    won = [(a, b, wins, ties, losses) for (a, b), (wins, ties, losses) in counts(votes).items()]
    points = [(name, *values) for name, values in sorted(strengths(votes).items(), key=lambda item: -item[1][0])]
    prompts, voters = len({vote.prompt for vote in votes}), len({vote.voter for vote in votes})
    note = f"{len(votes)} votes of {voters} voters on {prompts} prompts; without names, sides drawn at random."
    agreed = agreement(votes)
    agree = (
        f"Voters agree in {agreed[0]:.0%} of {agreed[2]} pairs of votes on the same videos. "
        f"Krippendorff's alpha is {agreed[1]:.2f}: 1 is full agreement, 0 chance."
        if agreed
        else "No pair of videos was seen by two voters, so that nothing is known of their agreement."
    )
    strength = (
        "Bradley-Terry strengths in points of Elo, with their 95 % intervals over prompts: 100 points more are a "
        "chance of 64 % to be preferred. A tie is half a win."
    )
    return [
        Section("Votes", note, [Table(("first", "second", "first wins", "ties", "second wins"), won)]),
        Section("Strength", strength, [Table(("model", "strength", "from", "to"), points)]),
        Section("Agreement", agree, []),
    ]
