"""One run writes into a workdir at a time, and a dead one holds nobody up."""

import json
import os
import subprocess
import sys

import pytest

from sora_jax.core.errors import InputError
from sora_jax.train import workdir_lock
from sora_jax.train.workdir_lock import FILE, WorkdirLock, describe_process


def owned(folder, **changes):
    """Write a lock of this process, but for the changes."""
    (folder / FILE).write_text(json.dumps(describe_process() | changes))


def test_a_second_run_in_a_workdir_is_told_who_is_there(tmp_path):
    program = f"""
import pathlib, time
from sora_jax.train.workdir_lock import WorkdirLock
with WorkdirLock(pathlib.Path({str(tmp_path)!r})):
    print("locked", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match=rf"process {process.pid} on .* has trained here since .*take another"):
        WorkdirLock(tmp_path).__enter__()
    process.kill()
    process.wait()
    with WorkdirLock(tmp_path):  # at once: the owner is dead
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"start": "1"}])
def test_a_dead_owner_is_known_by_its_number_and_its_start(tmp_path, change):
    owned(tmp_path, **change)
    with WorkdirLock(tmp_path):
        pass


def test_an_owner_elsewhere_is_dead_when_it_stops_touching_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 0.5)
    owned(tmp_path, host="elsewhere")
    with WorkdirLock(tmp_path):
        assert "elsewhere" not in (tmp_path / FILE).read_text()


def test_an_owner_elsewhere_that_touches_the_lock_keeps_it(tmp_path, monkeypatch):
    owned(tmp_path, host="elsewhere")
    monkeypatch.setattr(workdir_lock.time, "sleep", lambda seconds: os.utime(tmp_path / FILE))
    with pytest.raises(InputError, match="on elsewhere has trained here"):
        WorkdirLock(tmp_path).__enter__()


def test_an_owner_that_was_suspended_and_taken_over_saves_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "TOUCH_SECONDS", 0.01)
    with WorkdirLock(tmp_path) as lock:
        lock.check()
        owned(tmp_path, host="elsewhere")
        assert lock._lost.wait(10)
        with pytest.raises(InputError, match="another process took this run over"):
            lock.check()
    assert "elsewhere" in (tmp_path / FILE).read_text()


def test_a_lock_that_a_full_disk_cut_short_holds_nobody_up(tmp_path):
    (tmp_path / FILE).write_text('{"host": "a')
    with WorkdirLock(tmp_path):
        pass
