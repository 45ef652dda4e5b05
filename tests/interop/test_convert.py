"""Published weights into a workdir, used, and out again: through the command line, with small random models."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
from wan_published import TRANSFORMER, write_published

from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.restore import restore_trained
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings, SampleSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.data.media.video import probe, read_clip
from sora_jax.generate.generator import load_generator
from sora_jax.generate.output.writer import read_metadata
from sora_jax.generate.sampling.clips import Noise
from sora_jax.generate.sampling.pipeline import sample_latents
from sora_jax.interop.wan.tables import from_original


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "wan"
    write_published(folder, "bfloat16")
    return folder


@pytest.fixture(scope="module")
def converted(published):
    workdir = published.parent / "workdir"
    assert main(["convert", f"--from={published}", f"--to={workdir}"]) == 0
    return workdir


def tensors_in(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in safetensors.numpy.load_file(file).items()}


def test_weights_come_out_again_bit_by_bit(published, converted):
    back = published.parent / "back"
    assert main(["convert", f"--from={converted}", f"--to={back}"]) == 0
    for name in ("transformer", "vae", "text_encoder"):
        before, after = tensors_in(published / name), tensors_in(back / name)
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            assert after[key].dtype == tensor.dtype and after[key].tobytes() == tensor.tobytes(), key
        assert json.loads((back / name / "config.json").read_text())
    assert (back / "tokenizer" / "spiece.model").read_bytes() == (converted / "tokenizer.model").read_bytes()


def test_two_experts_become_two_workdirs_and_come_out_again(tmp_path, capsys):
    published, workdir, back = tmp_path / "published", tmp_path / "workdir", tmp_path / "back"
    write_published(published, "bfloat16", boundary=0.9)
    assert main(["convert", f"--from={published}", f"--to={workdir}"]) == 0
    times = []
    for folder in (workdir, workdir / "low_noise"):
        settings, _ = read_meta(*find_checkpoint(folder))
        times.append((settings.flow.time_min, settings.flow.time_max))
    assert times == [(0.9, 1.0), (0.0, 0.9)]
    assert main(["convert", f"--from={workdir}", f"--to={back}"]) == 0
    assert json.loads((back / "model_index.json").read_text())["boundary_ratio"] == 0.9
    for name in ("transformer", "transformer_2"):
        before, after = tensors_in(published / name), tensors_in(back / name)
        assert {k: x.tobytes() for k, x in before.items()} == {k: x.tobytes() for k, x in after.items()}
    low = f"--checkpoint={workdir}/low_noise"
    assert main(["sample", low, "--prompt=a bird", f"--out={tmp_path}/low.mp4"]) == 2
    assert "an expert for times up to 0.9" in capsys.readouterr().err
    # The expert for high noise has another one below it, or makes nothing.
    shutil.rmtree(workdir / "low_noise")
    flags = [f"--checkpoint={workdir}", "--prompt=a bird", "--size=16x16", "--frames=1", f"--out={tmp_path}/x.mp4"]
    assert main(["sample", *flags]) == 2
    assert (
        "low_noise: no such folder; this model needs the workdir of the expert for times below 0.9"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "flag, words", [("--base", "is for an adapter"), ("--rest", "has all its parts; leave the flag out")]
)
def test_a_flag_that_would_be_ignored_is_refused(published, tmp_path, capsys, flag, words):
    assert main(["convert", f"--from={published}", f"--to={tmp_path}/out", f"{flag}={published}"]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_wans_own_layout_is_the_same_model(published, converted):
    """The transformer by its original names; all else from a folder in diffusers' layout."""
    folder = published.parent / "original"
    folder.mkdir()
    names = {from_original(name): name for name in original_names(TRANSFORMER.layers)}
    tensors = tensors_in(published / "transformer")
    assert names.keys() == tensors.keys()
    safetensors.numpy.save_file({names[k]: v for k, v in tensors.items()}, folder / "model.safetensors")
    config = {"_class_name": "WanModel", "model_type": "t2v", "dim": 48, "num_heads": 4, "num_layers": 2}
    config |= {"in_dim": 4, "out_dim": 4, "ffn_dim": 64, "freq_dim": 16, "text_dim": 16}
    (folder / "config.json").write_text(json.dumps(config))
    workdir = published.parent / "from-original"
    assert main(["convert", f"--from={folder}", f"--to={workdir}", f"--rest={published}"]) == 0
    before, after = (restored(path) for path in (converted, workdir))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))


def original_names(layers: int) -> list[str]:
    modules = ["patch_embedding", "head.head", "time_projection.1"]
    modules += [f"{name}_embedding.{n}" for name in ("text", "time") for n in (0, 2)]
    names = ["head.modulation"]
    for block in (f"blocks.{n}" for n in range(layers)):
        names.append(f"{block}.modulation")
        modules += [f"{block}.norm3", f"{block}.ffn.0", f"{block}.ffn.2"]
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            modules += [f"{attention}.{part}" for part in "qkvo"]
            names += [f"{attention}.norm_{part}.weight" for part in "qk"]
    return names + [f"{module}.{part}" for module in modules for part in ("weight", "bias")]


def restored(workdir: pathlib.Path) -> dict:
    folder, step = find_checkpoint(workdir)
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        return restore_trained(folder, step, read_meta(folder, step)[0])


def broken(published: pathlib.Path, folder: pathlib.Path, how: str) -> pathlib.Path:
    shutil.copytree(published, folder)
    file = folder / "transformer" / "model-1.safetensors"
    if how == "shard":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif how == "pickle":
        for path in (folder / "vae").glob("*.safetensors"):
            path.rename(path.with_suffix(".bin"))
    elif how == "preset":
        config = json.loads((folder / "transformer" / "config.json").read_text())
        (folder / "transformer" / "config.json").write_text(json.dumps(config | {"ffn_dim": 32}))
    elif how == "nothing":
        (folder / "model_index.json").unlink()
    return folder


@pytest.mark.parametrize(
    "how, words",
    [
        ("shard", "model-1.safetensors: no such file, but model.safetensors.index.json names it"),
        ("cut", "no readable safetensors file"),
        ("pickle", "vae/model.bin: a pickle can run code and is never opened; take the model's safetensors"),
        ("preset", "tensor 'blocks.0.ffn.net.2.weight' has shape [48, 64], the model asks for [48, 32]"),
        ("nothing", "model_index.json: no such file"),
    ],
)
def test_what_is_no_model_is_told_in_one_line_and_nothing_is_written(published, tmp_path, capsys, how, words):
    folder, out = broken(published, tmp_path / "broken", how), tmp_path / "out"
    assert main(["convert", f"--from={folder}", f"--to={out}"]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and not out.exists()


def test_each_prompt_of_a_file_makes_a_video(converted, tmp_path):
    (tmp_path / "prompts.txt").write_text("a rabbit\n\na bird\na rabbit\n")
    flags = [
        f"--prompts={tmp_path}/prompts.txt",
        "--size=32x32",
        "--frames=5",
        "--steps=2",
        "--mesh=fsdp=2,tensor=4",
    ]
    # Two at a time, and one that is thrown away.
    given = [f"--prompts={tmp_path}/prompts.txt", f"--out={tmp_path}/out"]
    assert main(["sample", f"--checkpoint={converted}", *given, *flags]) == 0
    paths = sorted((tmp_path / "out").glob("*.mp4"))
    assert [path.name for path in paths] == ["000.mp4", "001.mp4", "002.mp4"]
    assert [read_metadata(path)["prompt"] for path in paths] == ["a rabbit", "a bird", "a rabbit"]
    first, last = (read_clip(probe(paths[n]), (32, 32), fps=16.0, frames=5).astype(int) for n in (0, 2))
    assert np.abs(first - last).max() > 20  # the same prompt, another noise


def test_a_seed_makes_the_same_video_on_any_mesh_and_in_any_company(converted):
    sample = SampleSettings(size="32x32", frames=5, steps=3, solver="unipc", guidance=5.0, shift=5.0)
    latents = []
    for mesh, prompts, first in (
        ({}, ["a bird"], 1),
        ({"data": 2, "ulysses": 2, "tensor": 2}, ["a rabbit", "a bird"], 0),
    ):
        with jax.set_mesh(tiny.mesh_of(**mesh)):
            generator = load_generator(converted, dtype="float32")
            latents.append(sample_latents(generator, prompts, sample, Noise(4, first))[-1])
    assert latents[0].std() > 0.1
    np.testing.assert_allclose(*latents, atol=1e-3)


@pytest.mark.parametrize(
    "name, words", [("absent", "no name of a model on the hub"), ("a/b", "a/b: no such folder")]
)
def test_a_model_that_cannot_be_fetched_is_told_in_one_line(tmp_path, capsys, monkeypatch, name, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["convert", f"--from={name}", f"--to={tmp_path}/out"]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and not (tmp_path / "out").exists()
