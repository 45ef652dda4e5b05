"""Checkpoints on a disk, in gs:// and in s3://: saved, kept, restored, broken, set aside, pruned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
import tiny

from sora_jax.checkpoint import tools
from sora_jax.checkpoint.manager import Checkpoints
from sora_jax.checkpoint.restore import abstract_on_mesh, restore_ema, verify_step
from sora_jax.checkpoint.workdir import COMMIT, find_checkpoint, steps_in, written_at
from sora_jax.core.errors import InputError
from sora_jax.core.storage import in_bucket
from sora_jax.train.state import TrainState

BUCKETS = pytest.mark.parametrize("folder", ["gs", "s3"], indirect=True)


def state_at(step: int) -> TrainState:
    draw = np.random.default_rng(step)
    params = {"layer": {"kernel": jnp.asarray(draw.normal(size=(64, 32)), jnp.float32), "bias": jnp.zeros(32)}}
    ema = jax.tree.map(lambda x: x + 1, params)
    return TrainState(jnp.asarray(step), params, ema, ({"mu": params["layer"]["kernel"] * 2}, ()))


def save(workdir, steps, keep=2):
    with Checkpoints(workdir, keep, 0) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step), tiny.SETTINGS, "hash")
    return workdir / "checkpoints"


def restore(workdir):
    with Checkpoints(workdir, 9) as checkpoints:
        return checkpoints.restore(abstract_on_mesh(jax.eval_shape(lambda: state_at(0))), tiny.SETTINGS)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(tiny.mesh_of()):
        yield


def test_the_last_are_kept_and_come_back_to_the_last_bit(folder):
    checkpoints = save(folder / "run", (1, 2, 3))
    assert steps_in(checkpoints) == [2, 3] and find_checkpoint(folder / "run") == (checkpoints, 3)
    state, data_hash, notes = restore(folder / "run")
    jax.tree.map(np.testing.assert_array_equal, state, state_at(3))
    assert (data_hash, notes) == ("hash", []) and verify_step(checkpoints, 2) > 0
    assert written_at(checkpoints, 3) >= written_at(checkpoints, 2) > 1e18  # S3 counts seconds
    ema = restore_ema(checkpoints, 2, abstract_on_mesh(jax.eval_shape(lambda: state_at(0).ema)))
    jax.tree.map(np.testing.assert_array_equal, ema, state_at(2).ema)


def test_a_flipped_bit_is_found_and_the_step_before_is_taken(folder):
    checkpoints = save(folder / "run", (1, 2))
    files = [path for path in (checkpoints / "2/state").rglob("*") if path.is_file() and "/d/" in str(path)]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    state, _, notes = restore(folder / "run")
    jax.tree.map(np.testing.assert_array_equal, state, state_at(1))
    assert "set aside as 2.broken, step 1 is taken" in notes[0]
    assert steps_in(checkpoints) == [1] and (checkpoints / "2.broken").is_dir()
    console = rich.console.Console(record=True, width=200)
    tools.inspect(folder / "run", console)
    told = console.export_text()
    assert "2.broken" in told and "set aside" in told
    tools.prune(folder / "run", 1, 0, dry_run=False, console=console)
    assert not (checkpoints / "2.broken").exists() and steps_in(checkpoints) == [1]


@BUCKETS
def test_a_step_without_its_last_file_is_no_step_and_is_cleaned_up(folder):
    checkpoints = save(folder / "run", (1, 2))
    (checkpoints / "2" / COMMIT).unlink()  # as if the process had been killed before it
    assert steps_in(checkpoints) == [1]
    state, _, notes = restore(folder / "run")
    jax.tree.map(np.testing.assert_array_equal, state, state_at(1))
    assert notes == [] and not (checkpoints / "2").exists()
    save(folder / "run", (2,))
    jax.tree.map(np.testing.assert_array_equal, restore(folder / "run")[0], state_at(2))


@BUCKETS
def test_a_workdir_without_a_checkpoint_is_one_line(folder):
    assert in_bucket(folder)
    with pytest.raises(InputError, match=r"none: no such folder"):
        find_checkpoint(folder / "none")
