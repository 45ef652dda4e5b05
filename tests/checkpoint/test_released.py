"""A run's model in one file, in the place of its workdir."""

import dataclasses
import json
import pathlib
import runpy
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import tiny
from safetensors.numpy import load_file, save_file
from test_tasks import write_run

from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.model_folder import SETTINGS, WEIGHTS
from sora_jax.checkpoint.release import check_whole
from sora_jax.checkpoint.workdir import RELEASED
from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.diffusion.flow import time_table
from sora_jax.evaluate.checkpoint_under_test import open_checkpoint
from sora_jax.generate.generator import load_generator
from sora_jax.models.layers.params import bind, count_params
from sora_jax.models.video_model import VideoModel
from sora_jax.train.init_from import init_from
from sora_jax.train.state import TrainState


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    write_run(folder / "run")
    assert main(["checkpoint", "release", f"--workdir={folder}/run", f"--out={folder}/released"]) == 0
    return folder


def rounded(params):
    return jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32)), params)


def test_a_released_model_is_its_run_rounded(home):
    for mesh in (tiny.mesh_of(), make_mesh(MeshSettings(fsdp=4, tensor=2), jax.devices())):
        with jax.set_mesh(mesh):
            run, released = (load_generator(home / name) for name in ("run", "released"))
            jax.tree.map(np.testing.assert_array_equal, rounded(released.params), rounded(run.params))
            assert jax.tree.map(lambda x: x.dtype, released.params) == jax.tree.map(lambda x: x.dtype, run.params)
            assert {x.sharding.mesh for x in jax.tree.leaves(released.params)} == {mesh}
    assert released.step == run.step and released.autoencoder == run.autoencoder


def test_one_checkpoint_of_a_run_is_loaded_and_released_by_its_path(home, tmp_path, capsys):
    step = home / "run/checkpoints/0"
    with jax.set_mesh(tiny.mesh_of()):
        run, named = load_generator(home / "run"), load_generator(step)
        jax.tree.map(np.testing.assert_array_equal, named.params, run.params)
        with pytest.raises(InputError, match="run: no complete checkpoint of step 3; there are 0"):
            load_generator(home / "run/checkpoints/3")
    assert named.step == 0
    assert main(["checkpoint", "release", f"--workdir={step}", f"--out={tmp_path}"]) == 0
    for file in ("model/model.safetensors", "tokenizer.model"):
        assert (tmp_path / file).read_bytes() == (home / "released" / file).read_bytes()
    assert main(["checkpoint", "inspect", f"--workdir={step}"]) == 2
    assert "is one checkpoint; name its run" in capsys.readouterr().err


def write_other(home, out, add):
    """A copy of the released model whose weights are each larger by `add`."""
    shutil.copytree(home / "released", out)
    file = out / RELEASED / WEIGHTS
    with safetensors.safe_open(file, "np") as opened:
        metadata = opened.metadata()
    tensors = {name: tensor + tensor.dtype.type(add) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata)
    return tensors


def test_several_models_are_released_as_their_mean(home, tmp_path, capsys):
    first = load_file(home / "released" / RELEASED / WEIGHTS)
    other = write_other(home, tmp_path / "other", 0.5)
    flags = [f"--workdir={home}/released", f"--workdir={tmp_path}/other", f"--workdir={tmp_path}/other"]
    assert main(["checkpoint", "release", *flags, f"--out={tmp_path}/mean", "--dtype=float32"]) == 0
    assert "the mean of 3 models" in capsys.readouterr().err
    for name, found in load_file(tmp_path / "mean" / RELEASED / WEIGHTS).items():
        wanted = (first[name].astype(np.float32) + 2 * other[name].astype(np.float32)) / 3
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)  # thirds are added in another order
    with jax.set_mesh(tiny.mesh_of()):
        assert load_generator(tmp_path / "mean").autoencoder == load_generator(home / "run").autoencoder


def test_models_that_differ_in_more_than_weights_have_no_mean(home, tmp_path, capsys):
    write_other(home, tmp_path / "tokens", 0)
    (tmp_path / "tokens/tokenizer.model").write_bytes(b"another")
    write_other(home, tmp_path / "settings", 0)
    settings = tmp_path / "settings" / RELEASED / SETTINGS
    values = json.loads(settings.read_text())
    values["transformer"]["rotary_base"] = 77.0
    settings.write_text(json.dumps(values))
    for name, words in (
        ("tokens", f"{tmp_path}/tokens/tokenizer.model: differs from {home}/released/tokenizer.model"),
        ("settings", f"{tmp_path}/settings: has config.transformer.rotary_base=77.0, {home}/released 10000.0"),
    ):
        flags = [f"--workdir={home}/released", f"--workdir={tmp_path}/{name}", f"--out={tmp_path}/mean"]
        assert main(["checkpoint", "release", *flags]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "mean").exists()


def test_a_workdir_that_lacks_a_file_is_not_released(home, tmp_path, capsys):
    write_other(home, tmp_path / "half", 0)
    (tmp_path / "half/tokenizer.model").unlink()
    for flags in ([], [f"--workdir={home}/released"]):
        flags = [*flags, f"--workdir={tmp_path}/half", f"--out={tmp_path}/out"]
        assert main(["checkpoint", "release", *flags]) == 2
        assert f"{tmp_path}/half/tokenizer.model: no such file" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_training_begins_with_a_released_model(home):
    with jax.set_mesh(tiny.mesh_of()):
        settings, _ = read_meta(home / "released" / RELEASED, 0)
        settings = dataclasses.replace(
            settings, train=dataclasses.replace(settings.train, init_from=str(home / "released"))
        )
        zeros = jax.tree.map(jnp.zeros_like, load_generator(home / "run").params)
        zeros = jax.tree.map(lambda x: x.astype(jnp.float32), zeros)
        state = init_from(settings, TrainState(jnp.zeros((), jnp.int32), zeros, zeros, ()))
        jax.tree.map(np.testing.assert_array_equal, state.ema, rounded(load_generator(home / "run").params))


def test_another_release_is_another_subject_of_evaluation(home, tmp_path):
    before = open_checkpoint(home / "released", "a", tmp_path).content_hash
    assert open_checkpoint(home / "released", "b", tmp_path).content_hash == before
    assert main(["checkpoint", "release", f"--workdir={home}/run", f"--out={tmp_path}", "--dtype=float32"]) == 0
    assert open_checkpoint(tmp_path, "a", tmp_path).content_hash != before


def test_what_is_no_whole_model_is_not_released(tmp_path):
    with pytest.raises(InputError, match="holds an autoencoder"):
        check_whole(dataclasses.replace(tiny.SETTINGS, objective="autoencoder"), tmp_path)
    for change, words in (
        ({"lora": {"rank": 2}, "train": {"init_from": "run"}}, "holds adapters"),
        ({"flow": {"time_min": 0.9}}, "one of two experts"),
        ({"text": {"weights": "umt5"}}, "its text encoder is a published one"),
    ):
        with pytest.raises(InputError, match=words):
            check_whole(tiny.change(tiny.SETTINGS, **change), tmp_path)


GROW = pathlib.Path(__file__).parent.parent / "benchmarks/shapes/grow.py"


@pytest.mark.exhaustive  # a script of experiments
def test_a_grown_model_makes_what_it_made(one_device):
    params = tiny.random_params(VideoModel, tiny.SETTINGS)
    settings, grown = runpy.run_path(str(GROW))["grow"](tiny.SETTINGS, params, [0, 1, 1, 0])
    assert settings.transformer.layers == 4 and count_params(grown) > 1.5 * count_params(params)
    batch = tiny.on_mesh(tiny.random_batch(0))
    noise = jax.random.normal(jax.random.key(0), batch.patches.shape)

    def velocity(settings, params):
        model = bind(VideoModel, settings, jax.tree.map(jnp.asarray, params))
        return model.velocity(model.embed_text(batch), noise, *time_table(batch, jnp.full((8, 3), 0.7)))

    before = velocity(tiny.SETTINGS, params)
    np.testing.assert_allclose(velocity(settings, grown), before, rtol=1e-5, atol=1e-5)  # fused otherwise


@pytest.mark.exhaustive
def test_a_released_model_is_grown_by_the_script(home, tmp_path):
    flags = [home / "released", tmp_path / "grown", "--layers=0,0"]
    subprocess.run([sys.executable, GROW, *flags], check=True)
    with jax.set_mesh(tiny.mesh_of()):
        before, after = load_generator(home / "released"), load_generator(tmp_path / "grown")
    assert after.settings.transformer.layers == 2 and after.step == before.step
    assert after.autoencoder == before.autoencoder
    wrong = subprocess.run([sys.executable, GROW, *flags[:2], "--layers=0,1"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "--layers: [0, 1] are not all of 0 to 0" in wrong.stderr


def test_a_released_model_has_no_steps_and_a_broken_one_is_told(home, tmp_path, capsys):
    assert main(["checkpoint", "verify", f"--workdir={home}/released"]) == 2
    assert "released: no checkpoint in it" in capsys.readouterr().err
    assert main(["checkpoint", "release", f"--workdir={home}/run", f"--out={tmp_path}/released"]) == 0
    file = tmp_path / "released" / RELEASED / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    flags = [f"--checkpoint={tmp_path}/released", "--prompt=a bird", f"--out={tmp_path}/a.mp4"]
    assert main(["sample", *flags]) == 2
    assert "no readable safetensors file" in capsys.readouterr().err and not (tmp_path / "a.mp4").exists()
