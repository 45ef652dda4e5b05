"""A bucket that fails for a while loses nothing, and one that fails for good is one line."""

import bucket_faults
import bucket_servers
import fsspec
import pytest

from sora_jax.core import buckets
from sora_jax.core.buckets import BucketPath, bucket_reason
from sora_jax.core.errors import InputError
from sora_jax.core.local_cache import LocalCache
from sora_jax.core.storage import as_path, atomic_write

DATA = bytes(range(256)) * 400


@pytest.fixture
def faulty(request, bucket_server, monkeypatch):
    """(a bucket behind a proxy, the proxy's faults); the parameter is the storage."""
    storage = request.param
    server = bucket_server(storage)
    folder = as_path(bucket_servers.new_bucket(storage, server))
    (folder / "a.bin").write_bytes(DATA)
    buckets._set_options()
    with bucket_faults.proxy(server) as (address, faults):
        options = {"endpoint_url": address, "skip_instance_cache": True, "use_listings_cache": False}
        made = fsspec.filesystem(storage, **options, **({"token": "anon"} if storage == "gs" else {}))
        monkeypatch.setattr(BucketPath, "fs", property(lambda self: made))
        yield folder, faults


def storages(*slow):
    return pytest.mark.parametrize(
        "faulty",
        [pytest.param(s, marks=[pytest.mark.slow] if s in slow else []) for s in ("gs", "s3")],
        indirect=True,
    )


@storages("gs")
@pytest.mark.parametrize("fault", ["503", "429", "cut"])
def test_an_object_is_read_and_written_through_passing_faults(faulty, fault):
    folder, faults = faulty
    faults.plan = [fault] * 2
    assert (folder / "a.bin").read_bytes() == DATA
    assert not faults.plan
    faults.plan = [fault] * 2
    with atomic_write(folder / "b.bin") as temporary:
        temporary.write_bytes(DATA)
    assert (folder / "b.bin").read_bytes() == DATA
    assert not faults.plan


@storages()
def test_a_flipped_byte_does_not_get_into_a_copy(faulty, tmp_path):
    folder, faults = faulty
    faults.where = lambda method, path: method == "GET" and "a.bin" in path and "alt=json" not in path
    cache = LocalCache(tmp_path / "cache", 10**9)
    (folder / "a.bin").stat()
    faults.where, faults.plan = (
        (lambda method, path: method == "GET" and ("alt=media" in path or "/b" not in path)),
        ["flip"],
    )
    assert cache.copy_of(folder / "a.bin").read_bytes() == DATA


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (type("DefaultCredentialsError", (Exception,), {})("none"), "no credentials for it; run `gcloud auth"),
        (PermissionError("Forbidden"), "forbidden; your account needs to"),
        (ValueError("PERMISSION_DENIED: Error reading"), "forbidden; your account needs to"),
        (type("ClientConnectorError", (Exception,), {})("refused"), "not reachable; check the network"),
        (TimeoutError(), "not reachable; check the network"),
        (ValueError("UNAVAILABLE: HTTP response code: 503"), r"does not answer now (HTTP 503"),
        (FileNotFoundError("The specified bucket does not exist"), "no such bucket"),
        (ValueError("something else"), ""),
    ],
)
def test_an_error_that_the_user_can_mend_is_one_line(error, words):
    found = bucket_reason(error, "gs")
    assert (words in found) if words else found == ""


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs s3fs; run `pip install 'sora_jax\[s3\]'`"):
        as_path("s3://bucket/a")
