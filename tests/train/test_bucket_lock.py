"""Two runs on one workdir in a bucket: one has it, the other is told."""

import json
import threading

import pytest

from sora_jax.core.errors import InputError
from sora_jax.train import bucket_lock, workdir_lock
from sora_jax.train.bucket_lock import BucketLock, lock_of
from sora_jax.train.workdir_lock import FILE, describe_process, has_died, is_locked

pytestmark = pytest.mark.parametrize("folder", ["gs", "s3"], indirect=True)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(workdir_lock, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(workdir_lock, "TOUCH_SECONDS", 0.1)
    monkeypatch.setattr(bucket_lock, "SETTLE_SECONDS", 0.3)


def owned(folder, **changes):
    (folder / FILE).write_text(json.dumps(describe_process() | changes))


def test_a_second_run_is_told_and_the_lock_goes_with_its_run(folder):
    with lock_of(folder) as lock:
        assert isinstance(lock, BucketLock) and is_locked(folder) and not has_died(folder)
        with pytest.raises(InputError, match=r"process \d+ on .* has trained here since .*take another --workdir"):
            lock_of(folder).__enter__()
        lock.check()
    assert not is_locked(folder)


def test_a_dead_owner_is_replaced_at_once_and_one_elsewhere_when_it_is_silent(folder):
    owned(folder, pid=2**22 + 1)
    with lock_of(folder):
        pass
    owned(folder, host="elsewhere")
    with lock_of(folder):
        assert "elsewhere" not in (folder / FILE).read_text()


def test_an_owner_elsewhere_that_goes_on_touching_keeps_it(folder):
    stop = threading.Event()

    def touch():
        while not stop.wait(0.05):
            owned(folder, host="elsewhere", touched=stop.is_set())

    owned(folder, host="elsewhere")
    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(InputError, match="on elsewhere has trained here"):
            lock_of(folder).__enter__()
    finally:
        stop.set()
        thread.join()


def test_of_two_that_take_over_a_dead_run_one_has_it(folder):
    owned(folder, host="elsewhere")
    locks, outcomes = [lock_of(folder) for _ in range(2)], []
    for number, lock in enumerate(locks):
        lock._me |= {"host": f"host{number}", "namespace": str(number)}

    def enter(lock):
        try:
            lock.__enter__()
            outcomes.append("has it")
        except InputError:
            outcomes.append("told")

    threads = [threading.Thread(target=enter, args=(lock,)) for lock in locks]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    [lock.__exit__() for lock in locks]
    assert sorted(outcomes) == ["has it", "told"]


def test_a_run_that_was_taken_over_saves_no_more(folder):
    with lock_of(folder) as lock:
        lock._released.wait(0.15)
        owned(folder, host="elsewhere")
        assert lock._lost.wait(5)
        with pytest.raises(InputError, match="another process took this run over"):
            lock.check()
    assert "elsewhere" in (folder / FILE).read_text()  # the other one's lock stays
