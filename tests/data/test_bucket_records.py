"""Records are read the same from a disk, from gs:// directly, and through copies of gs:// and s3://."""

import pickle

import numpy as np
import pytest
import tiny
import tiny_run

from sora_jax.core import local_cache
from sora_jax.core.errors import InputError
from sora_jax.data.records.records import Records

CODER = tiny.SETTINGS.autoencoder


@pytest.fixture
def data(folder):
    tiny_run.write_data(folder / "data", "latents", CODER)
    return folder / "data"


def read(records) -> list[np.ndarray]:
    return [records.read("train", i) for i in range(len(records.clips("train")))]


def test_records_are_the_same_on_every_storage(data, tmp_path):
    tiny_run.write_data(tmp_path / "here", "latents", CODER)
    records = Records(data, "latents")
    np.testing.assert_array_equal(read(records), read(Records(tmp_path / "here", "latents")))
    again = pickle.loads(pickle.dumps(records))  # as a loader's worker gets it
    np.testing.assert_array_equal(again.read("train", 3), records.read("train", 3))


@pytest.mark.parametrize("folder", ["gs", "s3"], indirect=True)
def test_without_a_cache_gs_is_read_directly_and_s3_asks_for_one(data, monkeypatch):
    monkeypatch.delenv(local_cache.VARIABLE)
    if data.scheme == "gs":
        assert len(read(Records(data, "latents"))) == 8
    else:
        with pytest.raises(InputError, match=r"are read from copies; name --cache=FOLDER"):
            read(Records(data, "latents"))


@pytest.mark.parametrize("folder", ["gs"], indirect=True)
def test_a_shard_that_is_not_what_was_written_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setenv(local_cache.VARIABLE, str(tmp_path / "cache"))  # others hold an intact copy
    shard = next(data.glob("clips-train*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-9] + b"x" + content[-8:])
    with pytest.raises(InputError, match=r"differs from its checksum"):
        Records(data, "latents").read("train", 0)
