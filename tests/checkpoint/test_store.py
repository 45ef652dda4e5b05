"""Models on disk: what is written is read back, and a broken file is one clear line."""

import dataclasses
import json
import os
import pickle
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from sora_jax.checkpoint.model_folder import load_model, model_hash, named, save_model
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh, spec
from sora_jax.models.layers.params import init_params


@dataclasses.dataclass(frozen=True)
class PairSettings:
    width: int = 8
    scale: float = 1.0


class Pair(nnx.Module):
    """Two weights in a list, one of them split over fsdp."""

    def __init__(self, settings, *, rngs):
        mesh = jax.sharding.get_abstract_mesh()
        layout = {} if mesh.empty else {"out_sharding": spec("embed .")}
        normal = jax.nn.initializers.normal()
        square = normal(rngs.params(), (settings.width, settings.width), jnp.float32, **layout)
        self.parts = nnx.List([nnx.Param(square), nnx.Param(normal(rngs.params(), (3,), jnp.float32))])


@pytest.fixture
def saved(tmp_path):
    params = init_params(Pair, PairSettings(), jax.random.key(0))
    save_model(tmp_path / "model", Pair, PairSettings(), params)
    return tmp_path / "model", params


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_what_is_saved_is_loaded(saved):
    folder, params = saved
    settings, loaded = load_model(folder, Pair, PairSettings)
    assert settings == PairSettings()
    assert_same(loaded, params)
    assert [name for name, _ in named(loaded)] == ["parts.0", "parts.1"]


def test_bfloat16_on_disk_is_float32_in_memory(tmp_path):
    params = init_params(Pair, PairSettings(), jax.random.key(0))
    save_model(tmp_path, Pair, PairSettings(), params, dtype="bfloat16")
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * (64 + 3) + 200
    _, loaded = load_model(tmp_path, Pair, PairSettings)
    assert_same(loaded, jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), params))


def test_weights_are_laid_out_on_the_mesh_of_the_day(saved):
    folder, params = saved
    with jax.set_mesh(make_mesh(MeshSettings(data=2, fsdp=4))):
        _, loaded = load_model(folder, Pair, PairSettings)
        assert loaded["parts"][0].sharding.spec[0] == "fsdp"
        assert loaded["parts"][0].addressable_shards[0].data.shape == (2, 8)
        save_model(folder, Pair, PairSettings(), loaded)
    _, again = load_model(folder, Pair, PairSettings)
    assert_same(again, params)


def test_hash_follows_weights_and_settings(saved):
    folder, params = saved
    first = model_hash(folder)
    assert first == model_hash(folder)
    save_model(folder, Pair, PairSettings(scale=2.0), params)
    second = model_hash(folder)
    params["parts"][1] = params["parts"][1] + 1e-3
    save_model(folder, Pair, PairSettings(scale=2.0), params)
    assert len({first, second, model_hash(folder)}) == 3


def test_a_disk_that_is_full_leaves_the_last_model(saved):
    folder, params = saved
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # bytes a file; the weights need more
    try:
        with pytest.raises(InputError, match=r"model\.safetensors: can't be written"):
            save_model(folder, Pair, PairSettings(scale=2.0), params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    settings, loaded = load_model(folder, Pair, PairSettings)
    assert settings.scale == 1.0
    assert_same(loaded, params)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "settings.json"]


def rewrite(folder, change):
    tensors = dict(safetensors.numpy.load_file(folder / "model.safetensors"))
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def drop(tensors):
    del tensors["parts.1"]


def add(tensors):
    tensors["part.1"] = np.zeros(3, np.float32)


def reshape(tensors):
    tensors["parts.0"] = np.zeros((8, 9), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "tensor 'parts.1' missing"),
        (add, "tensor 'part.1' is not in the model; did you mean 'parts.1'?"),
        (reshape, r"tensor 'parts.0' has shape \[8, 9\], the settings ask for \[8, 8\]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(saved, change, message):
    folder, _ = saved
    rewrite(folder, change)
    with pytest.raises(InputError, match=message) as raised:
        load_model(folder, Pair, PairSettings)
    assert "\n" not in str(raised.value)
    assert str(folder / "model.safetensors") in str(raised.value)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("/tmp/a-pickle-was-opened",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: b"", "empty"),
        (lambda whole: whole[:-5], "truncated"),
        (lambda whole: whole[:40], "truncated"),
        (lambda whole: pickle.dumps(Bomb()), "no readable safetensors file"),
    ],
)
def test_a_broken_weights_file_is_one_line(saved, content, message):
    folder, _ = saved
    path = folder / "model.safetensors"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(InputError, match=message) as raised:
        load_model(folder, Pair, PairSettings)
    assert "\n" not in str(raised.value)
    assert not os.path.exists("/tmp/a-pickle-was-opened")  # noqa: PTH110


def test_a_folder_without_a_model_is_named(tmp_path, saved):
    folder, _ = saved
    with pytest.raises(InputError, match="absent: no such folder"):
        load_model(tmp_path / "absent", Pair, PairSettings)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the folder is empty"):
        load_model(tmp_path / "empty", Pair, PairSettings)
    (folder / "model.safetensors").rename(folder / "models.safetensors")
    with pytest.raises(InputError, match=r"did you mean 'models\.safetensors'"):
        load_model(folder, Pair, PairSettings)


def test_settings_that_do_not_fit_are_one_line(saved):
    folder, params = saved
    path = folder / "settings.json"
    path.write_text('{"width": 8,')
    with pytest.raises(InputError, match=r"settings\.json: no JSON"):
        load_model(folder, Pair, PairSettings)
    path.write_text(json.dumps({"widht": 8}))
    with pytest.raises(InputError, match=r"widht: no such key, did you mean 'width'"):
        load_model(folder, Pair, PairSettings)
    with pytest.raises(InputError, match=r"params: tensor 'parts\.0' has shape"):
        save_model(folder, Pair, PairSettings(width=16), params)
