"""A few of the corruptions and full disks of tests/reliability/corruption.py, which does many."""

import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parent))

import corruption


@pytest.mark.slow
@pytest.mark.exhaustive
def test_broken_checkpoints_and_full_disks_change_nothing_of_what_a_run_comes_to(tmp_path):
    try:
        broken, full = corruption.run(tmp_path, corruptions=4, disks=1, seed=1)
    except PermissionError as error:
        pytest.skip(str(error))
    assert [row["same"] for row in broken + full] == [True] * 5, (broken, full)
    assert {row["damage"] for row in broken} == set(corruption.DAMAGES)
    assert all(row["step taken"] in ("2", "4", "6") for row in broken)
