"""Votes of people: the file, and what they say."""

import dataclasses
import math

import numpy as np
import pytest

from sora_jax.core.errors import InputError
from sora_jax.evaluate.votes import (
    LEFT,
    RIGHT,
    TIE,
    Vote,
    agreement,
    append_vote,
    counts,
    read_votes,
    strengths,
    vote_sections,
)

A = Vote("ann", "00000 a b", "a cat", "a", "b", LEFT, 1.0)


def votes(*choices, voter="ann", left="a", right="b"):
    return [
        Vote(voter, f"{n} {left} {right}", f"prompt {n}", left, right, choice, 0.0)
        for n, choice in enumerate(choices)
    ]


def test_the_last_vote_counts_and_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "new" / "votes.jsonl"
    assert read_votes(path) == []
    append_vote(path, A)
    with path.open("a") as file:
        file.write('{"voter": "ann", "pair"')
    append_vote(path, dataclasses.replace(A, voter="bo\n «ü»"))
    append_vote(path, dataclasses.replace(A, choice=TIE))
    assert [(vote.voter, vote.choice) for vote in read_votes(path)] == [("ann", TIE), ("bo\n «ü»", LEFT)]
    assert len(path.read_text().splitlines()) == 4  # nothing is ever taken away
    path.write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="line 1 is no vote"):
        read_votes(path)


def test_wins_and_ties_do_not_depend_on_the_sides():
    turned = [dataclasses.replace(vote, left="b", right="a") for vote in votes(RIGHT, TIE, voter="bo")]
    assert counts([*votes(LEFT, LEFT, RIGHT, TIE), *turned]) == {("a", "b"): (3, 2, 1)}


def test_the_strength_of_two_is_the_logarithm_of_their_odds():
    """30 wins to 10, and half a win more for each."""
    found = strengths(votes(*[LEFT] * 30, *[RIGHT] * 10))
    assert found["a"][0] - found["b"][0] == pytest.approx(400 * math.log10(30.5 / 10.5), abs=1e-6)
    value, low, high = found["a"]
    # The odds of a binomial share of 3/4 among 40 have a deviation of 0.365; a difference is twice a strength.
    assert (high - low) / 2 == pytest.approx(
        1.96 * 0.365 * 400 / math.log(10) / 2, rel=0.15
    ) and low < value < high


def test_strengths_of_three_are_found_again():
    draw, true = np.random.default_rng(0), {"a": 200.0, "b": 0.0, "c": -200.0}
    cast = []
    for left, right in (("a", "b"), ("b", "c"), ("c", "a")):
        chance = 1 / (1 + 10 ** ((true[right] - true[left]) / 400))
        cast += votes(*np.where(draw.random(400) < chance, LEFT, RIGHT), left=left, right=right)
    for name, (value, low, high) in strengths(cast).items():
        assert low < true[name] < high and abs(value - true[name]) < 25
    # Who always wins has a finite strength.
    assert 200 < strengths(votes(*[LEFT] * 9))["a"][0] < 300


def test_agreement_beyond_chance():
    """Krippendorff's alpha by his own formula: 1 - observed / expected disagreement."""
    assert agreement(votes(LEFT, RIGHT)) is None
    same = [*votes(LEFT, RIGHT, TIE), *votes(LEFT, RIGHT, TIE, voter="bo")]
    assert agreement(same) == (1.0, 1.0, 3)
    mixed = [*votes(LEFT, LEFT, RIGHT, RIGHT), *votes(LEFT, LEFT, RIGHT, LEFT, voter="bo")]
    share, alpha, number = agreement(mixed)
    # 2 of 8 values disagree in pairs; of 5 and 3 values 2 * 15 / 7 would by chance.
    assert (share, number) == (0.75, 4) and alpha == pytest.approx(1 - 2 / (2 * 15 / 7))


def test_the_report_tells_wins_strengths_and_agreement():
    assert vote_sections([]) == []
    first, second, third = vote_sections([*votes(LEFT, TIE), *votes(LEFT, LEFT, voter="bo")])
    assert "4 votes of 2 voters on 2 prompts" in first.note and first.parts[0].rows == [("a", "b", 3, 1, 0)]
    assert [row[0] for row in second.parts[0].rows] == ["a", "b"]
    assert "Voters agree in 50% of 2 pairs" in third.note
