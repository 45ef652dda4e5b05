"""Files on a disk, in gs:// and in s3://: the same calls, the same outcome."""

import pathlib
import pickle
import threading

import pytest

from sora_jax.core import local_cache
from sora_jax.core.errors import InputError
from sora_jax.core.local_cache import LocalCache
from sora_jax.core.storage import (
    HashCache,
    as_path,
    atomic_write,
    content_hash,
    copy_file,
    in_bucket,
    local_file,
    move_folder,
    read_object,
    remove_folder,
)


def write(path, text="a"):
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def test_files_are_written_whole_found_and_removed(folder):
    assert not (folder / "a").exists() and list(folder.glob("*")) == []
    write(folder / "a/x.json", '{"n": 1}')
    write(folder / "a/b/y.txt", "ü\r\n")
    write(folder / "a/.hidden")
    assert [path.name for path in sorted((folder / "a").iterdir())] == [".hidden", "b", "x.json"]
    assert sorted(path.name for path in folder.glob("a/*.json")) == ["x.json"]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["a/.hidden", "a/b/y.txt", "a/x.json"]
    assert (folder / "a").is_dir() and not (folder / "a").is_file() and (folder / "a/x.json").is_file()
    assert read_object(folder / "a/x.json") == {"n": 1} and (folder / "a/x.json").stat().st_size == 8
    assert (folder / "a/b/y.txt").read_bytes() == "ü\r\n".encode()
    with (folder / "a/b/y.txt").open(encoding="utf-8", newline="") as file:
        assert file.read() == "ü\r\n"
    with pytest.raises(FileNotFoundError):
        (folder / "none").read_bytes()
    (folder / "a/x.json").unlink()
    (folder / "a/x.json").unlink(missing_ok=True)
    remove_folder(folder / "a/b")
    remove_folder(folder / "none")
    assert [path.name for path in (folder / "a").iterdir()] == [".hidden"]


def test_after_an_error_the_old_file_stays(folder):
    write(folder / "a.json", "old")
    with pytest.raises(ZeroDivisionError), atomic_write(folder / "a.json") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert (folder / "a.json").read_text() == "old"
    assert [path.name for path in folder.iterdir()] == ["a.json"]
    if in_bucket(folder):
        with pytest.raises(ValueError, match=r"write a file in a bucket with storage.atomic_write"):
            (folder / "b.json").open("w")


def test_a_path_keeps_its_place(folder):
    path = folder / "a" / "b.txt"
    assert as_path(str(path)) == as_path(path) == path == pickle.loads(pickle.dumps(path))
    assert path.resolve() == path.absolute() == path and str(path.relative_to(folder)) == "a/b.txt"
    assert path.with_suffix(".json").parent == folder / "a"
    assert str(path).startswith(str(folder)) and path.is_absolute()


def test_folders_are_moved_with_their_mark_last(folder):
    for name in ("s/a", "s/b/c", "s/done"):
        write(folder / name, name)
    move_folder(folder / "s", folder / "t", mark="done")
    assert not (folder / "s").exists()
    assert {p.relative_to(folder / "t").as_posix() for p in (folder / "t").rglob("*") if p.is_file()} == {
        "a",
        "b/c",
        "done",
    }
    assert (folder / "t/b/c").read_text() == "s/b/c"


def test_files_are_copied_between_storages(folder, tmp_path):
    write(folder / "a.bin", "content")
    copy_file(folder / "a.bin", tmp_path / "here.bin")
    copy_file(tmp_path / "here.bin", folder / "b.bin")
    assert (folder / "b.bin").read_text() == "content"
    assert content_hash(folder / "a.bin") == content_hash(tmp_path / "here.bin")


def test_a_copy_is_local_and_follows_its_file(folder):
    write(folder / "a.bin", "one")
    first = local_file(folder / "a.bin")
    assert type(first) is type(pathlib.Path()) and first.read_text() == "one" and first.suffix == ".bin"
    assert local_file(str(folder / "a.bin")) == first
    write(folder / "a.bin", "two")
    assert local_file(folder / "a.bin").read_text() == "two"


def test_hashes_are_kept_for_each_version_of_a_file(folder):
    computed = []

    def get():
        cache = HashCache(folder / "cache.json")
        found = cache.get(folder / "a", lambda: computed.append(1) or content_hash(folder / "a"))
        cache.save()
        return found

    write(folder / "a", "one")
    assert get() == get() and len(computed) == 1
    write(folder / "a", "other")
    assert get() == content_hash(folder / "a") and len(computed) == 2


@pytest.mark.parametrize("folder", ["gs", "s3"], indirect=True)
def test_of_several_that_create_an_object_one_succeeds(folder):
    won, start = [], threading.Barrier(6)

    def create(number):
        start.wait()
        if (folder / "lock").create(str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(6)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert len(won) == 1 and (folder / "lock").read_text() == str(won[0])


@pytest.mark.parametrize("folder", ["gs"], indirect=True)
def test_copies_are_checked_shared_and_bounded(folder, tmp_path, monkeypatch):
    for name in "abc":
        (folder / name).write_bytes(name.encode() * 1000)
    monkeypatch.setattr(local_cache, "IN_USE_SECONDS", 0)
    cache = LocalCache(tmp_path / "cache", max_bytes=2000)
    copies = [cache.copy_of(folder / name) for name in "abc"]
    assert [copy.exists() for copy in copies] == [False, True, True]
    assert cache.copy_of(folder / "a").read_bytes() == b"a" * 1000
    assert not copies[1].exists()
    with pytest.raises(InputError, match=r"differs from its checksum, 3 times"):
        cache.copy_of(folder / "a", sha256="0" * 64)
    assert not list(tmp_path.rglob("*.partial*"))
    with pytest.raises(InputError, match=r"none: no such file"):
        cache.copy_of(folder / "none")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ftp://host/a", r"no storage ftp://; it is gs://BUCKET/..., s3://BUCKET/... or a folder"),
        ("gs://", r"names no bucket; it is gs://BUCKET/..."),
    ],
)
def test_a_path_that_names_no_storage_is_one_line(path, message):
    with pytest.raises(InputError, match=message):
        as_path(path)


@pytest.mark.parametrize("folder", ["gs", "s3"], indirect=True)
def test_a_bucket_that_does_not_exist_is_one_line(folder):
    absent = as_path(f"{folder.scheme}://no-such-bucket-here/a")
    with pytest.raises(InputError, match=r"no (such bucket|bucket no-such-bucket-here); make it"):
        absent.check_bucket()
    with pytest.raises(InputError, match=r"no (such bucket|bucket no-such-bucket-here); make it"):
        write(absent)
    folder.check_bucket()
