"""A few kills of a run of two processes; `reliability/kills.py` makes many."""

import random

import pytest
from reliability.kills import plan, torture


@pytest.mark.slow
@pytest.mark.exhaustive
def test_three_kills_of_a_run_change_no_bit_of_it(tmp_path):
    """SIGKILL to one, SIGTERM to one in a save, SIGSTOP to one."""
    kills, runs, equal, _ = torture(tmp_path, kills=3, per_run=3, steps=40, seed=1)
    assert equal == runs == 1
    assert {kill.signal for kill in kills} == {"SIGKILL", "SIGTERM", "SIGSTOP"}
    for kill in kills:
        # Saved every 5 updates in the background: the last save may not be complete. SIGTERM loses nothing.
        assert kill.lost <= (0 if kill.signal == "SIGTERM" else 10), kill


def test_a_plan_of_kills_has_every_kind_alike():
    kinds = plan(36, random.Random(0))
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert len(counts) == 12
    assert all(count == (2 if moment == "in a save" else 4) for (_, _, moment), count in counts.items())
