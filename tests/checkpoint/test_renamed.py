"""Files that hold the old names of parameters are read as those of today."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import tiny
from flax import traverse_util

from sora_jax.checkpoint.manager import Checkpoints, Weights
from sora_jax.checkpoint.model_folder import WEIGHTS, load_model, named, save_model
from sora_jax.checkpoint.renamed import present_name
from sora_jax.checkpoint.restore import abstract_on_mesh, read_state, restore_ema, verify_step
from sora_jax.checkpoint.workdir import CHECKPOINTS
from sora_jax.config.schema import AutoencoderSettings
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import abstract_params

OLD = {
    "down_blocks": "levels",
    "up_blocks": "levels",
    "mid_block": "middle",
    "quant_conv": "moments",
    "post_quant_conv": "unlatent",
}


@pytest.fixture
def params(one_device):
    return tiny.random_params(Autoencoder, tiny.CODER)


def with_old_names(params: dict) -> dict:
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({tuple(OLD.get(key, key) for key in path): x for path, x in flat.items()})


def assert_equal(found, params):
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert jax.tree.structure(found) == jax.tree.structure(params)


def test_an_orbax_checkpoint_with_old_names(params, tmp_path):
    old = jax.tree.map(jnp.asarray, with_old_names(params))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(Weights(jnp.asarray(3), old), tiny.SETTINGS, "hash")
    folder = tmp_path / CHECKPOINTS
    abstract = abstract_on_mesh(abstract_params(Autoencoder, tiny.CODER))
    assert_equal(restore_ema(folder, 3, abstract), params)
    state = read_state(folder, 3, Weights(jax.ShapeDtypeStruct((), jnp.int32), abstract))
    assert state.step == 3
    assert_equal(state.ema, params)
    assert verify_step(folder, 3) == 1 + len(jax.tree.leaves(params))


def test_a_safetensors_folder_with_old_names(params, tmp_path):
    save_model(tmp_path, Autoencoder, tiny.CODER, params)
    old = {name: np.asarray(x) for name, x in named(with_old_names(params))}
    assert {present_name(name) for name in old} == {name for name, _ in named(params)}
    safetensors.numpy.save_file(old, tmp_path / WEIGHTS)
    assert_equal(load_model(tmp_path, Autoencoder, AutoencoderSettings)[1], params)
