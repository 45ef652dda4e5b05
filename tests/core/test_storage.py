"""Files that are written whole or not at all, and the temporary files of processes that died."""

import os
import subprocess
import sys
import time

import pytest

from sora_jax.core import storage
from sora_jax.core.errors import InputError
from sora_jax.core.storage import HashCache, atomic_write, content_hash, remove_stale_temporaries, temporary_path


def test_a_file_appears_whole_and_an_error_leaves_the_old_one(tmp_path):
    path = tmp_path / "new" / "a.json"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and [item.name for item in path.parent.iterdir()] == ["a.json"]


def test_two_writers_of_one_file_never_share_a_temporary_file(tmp_path):
    names = {temporary_path(tmp_path / "a.mp4").name for _ in range(100)}
    assert len(names) == 100 and all(name.endswith(".mp4") for name in names)
    with atomic_write(tmp_path / ("ü" * 120 + ".txt")) as temporary:  # 244 bytes of the 255 that a name may have
        temporary.write_text("a")


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    path = tmp_path / ("a" * 300)
    with pytest.raises(InputError, match="can't be written, the name is too long"), atomic_write(path):
        pass


def left_by(pid: int, folder, name="shard", host=None):
    """A temporary file as a process of that number leaves it."""
    path = temporary_path(folder / f"{name}.bin")
    path = path.with_name(path.name.replace(f"-{os.getpid()}-", f"-{pid}-"))
    path = path.with_name(path.name.replace(storage._host(), host or storage._host()))
    path.touch()
    return path


def test_only_our_own_temporary_files_of_the_dead_or_the_past_are_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = left_by(process.pid, tmp_path)
    old = left_by(1, tmp_path, host="0123abcd")
    yesterday = time.time() - storage.STALE_SECONDS - 60
    os.utime(old, (yesterday, yesterday))
    kept = [left_by(os.getpid(), tmp_path), left_by(process.pid, tmp_path, host="0123abcd")]
    for name in (".my.video.2024.mp4", ".shard.4711.bin", ".a.sora_jax-4711.bin", "a.sora_jax-0-1-2.bin"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (yesterday, yesterday))
        kept.append(tmp_path / name)
    remove_stale_temporaries(tmp_path)
    assert not dead.exists() and not old.exists() and all(path.exists() for path in kept)


def test_files_that_differ_in_one_byte_anywhere_have_different_hashes(tmp_path):
    data = bytearray(2**18)
    hashes = []
    for place in (0, 2**17, 2**18 - 1):
        data[place] = 1
        (tmp_path / "a").write_bytes(data)
        hashes.append(content_hash(tmp_path / "a"))
        data[place] = 0
    assert len(set(hashes)) == 3


def test_a_file_is_hashed_again_only_if_it_has_changed(tmp_path):
    path, computed = tmp_path / "a", []

    def compute():
        computed.append(content_hash(path))
        return computed[-1]

    def get(part=""):
        cache = HashCache(tmp_path / "cache.json")
        found = cache.get(path, compute, part)
        cache.save()
        return found

    path.write_bytes(b"one")
    assert get() == get() == content_hash(path)
    assert time.time() - path.stat().st_mtime >= 0.05  # until then it may change again within the same time stamp
    for times in (1_000_000_000, 1_000_000_007):
        os.utime(path, (times, times))
        assert get() == get() == content_hash(path)
    assert len(computed) == 3
    get(part="(0, 2)")
    assert len(computed) == 4
    (tmp_path / "cache.json").write_text("{damaged")
    assert get() == content_hash(path)
