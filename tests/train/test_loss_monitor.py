"""Numbers that go wrong: updates that are skipped, a run that ends, a loss that runs away."""

import io
import json
import math

import numpy as np
import pytest
import rich.console

from sora_jax.core.errors import InputError
from sora_jax.train.monitoring.loss_monitor import LossMonitor


@pytest.fixture
def told():
    return io.StringIO()


@pytest.fixture
def guard(tmp_path, told):
    console = rich.console.Console(file=told)
    return LossMonitor(tmp_path, 3, lambda step: [f"clip-{step}.mp4", *(f"{n}.mp4" for n in range(8))], console)


def numbers(loss=1.0):
    return {"loss": np.float32(loss), "skipped": np.float32(not math.isfinite(loss))}


def test_skipped_updates_in_a_row_end_the_run_with_the_sources_of_their_clips(guard, tmp_path):
    for step in (1, 2, 4, 5):  # a good one between them begins the count anew
        guard.update(step, numbers(float("nan")))
        if step == 2:
            guard.update(3, numbers())
    assert guard.take_skipped() == 4 and guard.take_skipped() == 0
    with pytest.raises(
        InputError, match=r"in 3 updates in a row, 4 to 6, on clips of clip-3\.mp4, 0\.mp4"
    ) as error:
        guard.update(6, numbers(float("inf")))
    assert "\n" not in str(error.value) and "and 6 more in " in str(error.value)
    assert json.loads((tmp_path / "bad_batches.json").read_text())["6"][0] == "clip-5.mp4"


def test_a_loss_that_runs_away_is_told_once_and_once_when_it_is_back(guard, told):
    draw = np.random.default_rng(0)
    for step in range(1, 1001):
        level = 2 * math.exp(-step / 100) + (1.0 if 500 < step <= 600 else 0.0)
        guard.update(step, numbers(1 + level + 0.1 * draw.normal()))
        if step == 500:
            assert told.getvalue() == ""
    lines = told.getvalue().splitlines()
    assert len(lines) == 2 and "the loss has gone up to" in lines[0] and "the loss is back at" in lines[1]
    assert 500 < int(lines[0].split("step ")[1].split(":")[0]) < 530
