"""Checkpoints: what is kept, and that nothing is taken for whole that is not."""

import json
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_run import Run

from sora_jax.checkpoint.checksums import checksum, checksums
from sora_jax.checkpoint.manager import Checkpoints
from sora_jax.checkpoint.meta import read_meta, with_hash
from sora_jax.checkpoint.orbax_errors import BrokenCheckpoint, reason_unreadable
from sora_jax.checkpoint.restore import abstract_on_mesh, restore_ema, verify_step
from sora_jax.checkpoint.workdir import steps_in
from sora_jax.core.errors import InputError
from sora_jax.train.optimizer import NormState
from sora_jax.train.state import TrainState

SETTINGS = tiny.SETTINGS


def state_at(step: int) -> TrainState:
    """A small state of noise, which no compression makes smaller."""
    draw = np.random.default_rng(step)
    params = {"layer": {"kernel": draw.normal(size=(64, 32)).astype(np.float32), "bias": np.zeros(32, np.float32)}}
    params = jax.tree.map(jnp.asarray, params)
    ema = jax.tree.map(lambda x: x + 1, params)
    return TrainState(jnp.asarray(step), params, ema, ({"mu": params["layer"]["kernel"] * 2}, ()))


def save(workdir: pathlib.Path, steps, keep=9, keep_every=0):
    with Checkpoints(workdir, keep, keep_every) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step), SETTINGS, "hash")
    return workdir / "checkpoints"


def restore(workdir: pathlib.Path, settings=SETTINGS):
    with Checkpoints(workdir, 9) as checkpoints:
        return checkpoints.restore(abstract_on_mesh(jax.eval_shape(lambda: state_at(0))), settings)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(tiny.mesh_of()):
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A workdir with steps 1, 2 and 3."""
    return save(tmp_path_factory.mktemp("written"), (1, 2, 3)).parent


@pytest.fixture
def workdir(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def data_file(step: pathlib.Path) -> pathlib.Path:
    """The file that holds most of the arrays."""
    return max(step.rglob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)


def flip(path: pathlib.Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def zero(path: pathlib.Path):
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(content[:third] + bytes(third) + content[2 * third :])


def halve(path: pathlib.Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Checksums -------------------------------------------------------------------------------------------------------


def test_a_checksum_is_the_same_on_every_mesh():
    x = np.random.default_rng(0).normal(size=(4, 8, 6)).astype(np.float32)
    found = [checksums({"f32": x, "bf16": x.astype(jnp.bfloat16), "bool": x > 0, "step": np.int32(3)})]
    with jax.set_mesh(tiny.mesh_of(data=2, fsdp=2, tensor=2)):
        for spec in (jax.P(), jax.P("data", ("fsdp", "tensor")), jax.P(None, "fsdp", "tensor")):
            y = jax.device_put(x, spec)
            found.append(
                checksums({"f32": y, "bf16": y.astype(jnp.bfloat16), "bool": y > 0, "step": jnp.int32(3)})
            )
    assert all(sums == found[0] for sums in found) and len(set(found[0].values())) == 4


def test_a_checksum_changes_with_any_bit_and_any_order():
    x = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint32)
    draw = random.Random(0)
    others = []
    for _ in range(100):
        y = x.copy()
        y[draw.randrange(64)] ^= np.uint32(1 << draw.randrange(32))
        others.append(y)
    signs, swapped, zeroed = x.copy(), x.copy(), x.copy()
    signs[[3, 40]] ^= np.uint32(2**31)  # sums of words alone would miss two flipped signs
    swapped[[3, 40]] = x[[40, 3]]
    zeroed[8:24] = 0
    sums = [int(checksum(y)) for y in (x, np.roll(x, 1), signs, swapped, zeroed, *others)]
    assert sums[0] not in sums[1:]


# What is kept ----------------------------------------------------------------------------------------------------


def test_the_last_few_and_every_so_many_are_kept(tmp_path):
    assert steps_in(save(tmp_path, range(1, 8), keep=2, keep_every=3)) == [3, 6, 7]


def test_a_state_comes_back_to_the_last_bit_on_another_mesh(workdir):
    with jax.set_mesh(tiny.mesh_of(data=2, fsdp=4)), Checkpoints(workdir, 9) as checkpoints:
        abstract = jax.eval_shape(lambda: state_at(0))
        kernel = abstract.params["layer"]["kernel"]
        sharding = jax.NamedSharding(jax.sharding.get_mesh(), jax.P("fsdp", "data"))
        kernel = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=sharding)
        abstract = abstract_on_mesh(abstract)
        abstract.params["layer"]["kernel"] = kernel
        state, data_hash, notes = checkpoints.restore(abstract, SETTINGS)
    assert state.params["layer"]["kernel"].sharding.spec == jax.P("fsdp", "data")
    assert_same(state, state_at(3))
    assert data_hash == "hash" and notes == []


# What is broken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [flip, zero, halve, pathlib.Path.unlink])
def test_a_broken_step_is_named_and_set_aside_and_the_one_before_is_taken(workdir, damage, capfd):
    damage(data_file(workdir / "checkpoints/3"))
    state, _, (note,) = restore(workdir)
    assert_same(state, state_at(2))
    assert "checkpoints/3: is broken, " in note and ("kernel" in note or "mu" in note)
    assert note.endswith("; set aside as 3.broken, step 2 is taken")
    assert steps_in(workdir / "checkpoints") == [1, 2] and (workdir / "checkpoints/3.broken/meta").is_dir()
    save(workdir, (3,))
    assert_same(restore(workdir)[0], state_at(3))
    damage(data_file(workdir / "checkpoints/3"))
    assert restore(workdir)[0].step == 2 and (workdir / "checkpoints/3.broken.2").is_dir()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["meta/metadata", "state/_METADATA", "state/manifest.ocdbt"])
def test_what_describes_a_step_is_guarded_as_well(workdir, name):
    for damage in (zero, pathlib.Path.unlink):
        damage(workdir / "checkpoints" / str(steps_in(workdir / "checkpoints")[-1]) / name)
        state, _, (note,) = restore(workdir)
        assert_same(state, state_at(steps_in(workdir / "checkpoints")[-1]))
        assert "is broken, " in note and "\n" not in note


def test_settings_that_were_changed_on_the_disk_are_not_believed(workdir):
    file = workdir / "checkpoints/3/meta/metadata"
    file.write_text(file.read_text().replace('"width": 48', '"width": 64'))
    _, _, (note,) = restore(workdir)
    assert "meta is not what was written" in note


def test_no_step_that_can_be_used_is_an_error_and_no_fresh_start(workdir):
    folder = workdir / "checkpoints"
    for step in (1, 2, 3):
        flip(data_file(folder / str(step)))
    for _ in range(2):
        with pytest.raises(InputError, match=r"3: is broken.*2: is broken.*1: is broken.*no step is left") as told:
            restore(workdir)
        assert "\n" not in str(told.value) and steps_in(folder) == [1, 2, 3]
    for step in (1, 2, 3):
        (folder / str(step)).rename(folder / f"{step}.broken")
    with Checkpoints(workdir, 9) as checkpoints, pytest.raises(InputError, match="holds no step that can be used"):
        checkpoints.latest()


def test_averages_that_are_broken_are_named_and_nothing_is_moved(workdir):
    abstract = abstract_on_mesh(jax.eval_shape(lambda: state_at(0))).ema
    folder = workdir / "checkpoints"
    assert_same(restore_ema(folder, 3, abstract), state_at(3).ema)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), abstract)
    assert_same(restore_ema(folder, 3, half), jax.tree.map(lambda x: x.astype(jnp.bfloat16), state_at(3).ema))
    meta = folder / "3/meta/metadata"
    content = json.loads(meta.read_text())
    content.pop("sha256")
    content["leaves"]["ema.layer.kernel"]["sum"] ^= 1
    meta.write_text(json.dumps(with_hash(content)))
    with pytest.raises(
        InputError, match=r"3: is broken, ema\.layer\.kernel: the checksum differs; rename it to 3\.b"
    ):
        restore_ema(folder, 3, half)
    with pytest.raises(BrokenCheckpoint, match=r"ema\.layer\.kernel"):
        verify_step(folder, 3)
    assert steps_in(folder) == [1, 2, 3] and verify_step(folder, 2) == 6


def test_a_disk_that_can_not_be_read_is_not_a_broken_checkpoint():
    assert reason_unreadable(PermissionError(13, "denied"), pathlib.Path("a")) == "no permission to read it"
    assert (
        reason_unreadable(ValueError("UNAVAILABLE: Error reading"), pathlib.Path("a"))
        == "the disk is not reachable"
    )
    assert reason_unreadable(ValueError("DATA_LOSS: Error reading"), pathlib.Path("a")) is None


def test_a_step_of_a_version_before_checksums_is_taken_and_told(workdir):
    meta = workdir / "checkpoints/3/meta/metadata"
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps({key: content[key] for key in ("settings", "data_hash")}))
    state, _, (note,) = restore(workdir)
    assert_same(state, state_at(3))
    assert "3: has no checksums" in note


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"transformer": {"width": 96}}, "config.transformer.width=48, now 96"),
        ({"lora": {"rank": 2}, "train": {"init_from": "base"}}, "config.lora.rank=0, now 2"),
        ({"optimizer": {"name": "muon"}}, "config.optimizer.name=adamw, now muon"),
        ({"loss": {"adversarial": 0.5}}, "config.loss.adversarial=0.0, now 0.5"),
    ],
)
def test_settings_of_another_state_are_told(workdir, changes, words):
    with pytest.raises(InputError, match=words.replace(".", r"\.")) as told:
        restore(workdir, tiny.change(SETTINGS, **changes))
    assert "\n" not in str(told.value) and steps_in(workdir / "checkpoints") == [1, 2, 3]


def test_arrays_that_the_settings_do_not_have_are_told(workdir):
    abstract = abstract_on_mesh(jax.eval_shape(lambda: state_at(0)))
    for params, words in (
        ({"layer": {**abstract.params["layer"], "more": abstract.step}}, r"3: has no params\.layer\.more"),
        (
            {"layer": {"kernel": abstract.step}},
            r"params\.layer\.kernel has shape \(64, 32\), the settings ask for",
        ),
    ):
        with Checkpoints(workdir, 9) as checkpoints, pytest.raises(InputError, match=words):
            checkpoints.restore(abstract.replace(params=params), SETTINGS)


def test_a_state_of_one_norm_for_both_players_becomes_one_of_a_norm_for_each(tmp_path):
    def state_of(mean):
        return state_at(1).replace(opt_state=(NormState(jnp.int32(3), mean), ()))

    with Checkpoints(tmp_path, 9) as checkpoints:
        checkpoints.save(state_of(jnp.float32(0.5)), SETTINGS, "hash")
    players = {"autoencoder": jnp.float32(0), "discriminator": jnp.float32(0)}
    with Checkpoints(tmp_path, 9) as checkpoints:
        state, _, notes = checkpoints.restore(
            abstract_on_mesh(jax.eval_shape(lambda: state_of(players))), SETTINGS
        )
    assert_same(state, state_of({name: jnp.float32(0.5) for name in players}))
    assert notes == []


def test_a_folder_that_vanishes_stops_the_run_in_one_line_or_not_at_all(tmp_path):
    with Checkpoints(tmp_path / "run", 9) as checkpoints:
        checkpoints.save(state_at(1), SETTINGS, "hash")
        checkpoints.manager.wait_until_finished()
        shutil.rmtree(tmp_path / "run")
        try:
            checkpoints.save(state_at(2), SETTINGS, "hash")
            checkpoints._checked(checkpoints.manager.wait_until_finished)
        except InputError as error:
            assert "\n" not in str(error) and "can't be written" in str(error)
        else:
            assert_same(restore(tmp_path / "run")[0], state_at(2))


# Other meshes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eight_four_and_one_devices_go_on_with_the_same_loss(tmp_path):
    def go(steps, sizes, workdir):
        """Losses up to step number `steps`, on from what is in the workdir."""
        with jax.set_mesh(tiny.mesh_of(**sizes)), Checkpoints(workdir, 9) as checkpoints:
            run, losses = Run(), []
            abstract = abstract_on_mesh(jax.eval_shape(run.fresh))
            state = run.fresh() if checkpoints.latest() is None else checkpoints.restore(abstract, SETTINGS)[0]
            while state.step < steps:
                batch = tiny.on_mesh(tiny.random_batch(int(state.step)))
                state, metrics = run.step(state, {}, batch)
                losses.append(float(metrics["loss"]))
            checkpoints.save(state, SETTINGS, "hash")
        return losses

    straight = go(6, {"data": 1}, tmp_path / "straight")
    moved = [
        loss
        for steps, sizes in ((2, {"data": 2, "fsdp": 4}), (4, {"data": 2, "ulysses": 2}), (6, {"data": 1}))
        for loss in go(steps, sizes, tmp_path / "moved")
    ]
    np.testing.assert_allclose(moved, straight, rtol=1e-5)
    assert read_meta(tmp_path / "moved/checkpoints", 6)[1] == "hash"
