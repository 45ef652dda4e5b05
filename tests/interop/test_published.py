"""Published models as they lie on people's disks: layouts, types, scheduler files, defaults and paths."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from wan_published import write_published

from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.restore import restore_trained
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.cli.main import main
from sora_jax.core.errors import InputError
from sora_jax.interop.streaming import Entry, write_tensors
from sora_jax.interop.wan.published import PREFIX, read_model
from sora_jax.interop.wan.sampling_defaults import NEGATIVE_PROMPT, PUBLISHED, scheduler_changes

CASES = {
    "t2v": ("wan2.1-t2v-1.3b", 0.0),
    "i2v": ("wan2.1-i2v-14b-720p", 0.0),
    "flf2v": ("wan2.1-flf2v-14b", 0.0),
    "i2v-a14b": ("wan2.2-i2v-a14b", 0.9),
    "ti2v": ("wan2.2-ti2v-5b", 0.0),
}
SHIFT = 5.0  # of the scheduler that `write_published` writes


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "wan"
    write_published(folder, "bfloat16")
    return folder


@pytest.fixture(scope="module")
def converted(published):
    assert main(["convert", f"--from={published}", f"--to={published.parent}/workdir"]) == 0
    return published.parent / "workdir"


def transformer_of(published) -> dict[str, np.ndarray]:
    files = (published / "transformer").glob("*.safetensors")
    return {name: x for file in files for name, x in safetensors.numpy.load_file(file).items()}


def restored(workdir: pathlib.Path) -> dict:
    folder, step = find_checkpoint(workdir)
    return jax.device_get(restore_trained(folder, step, read_meta(folder, step)[0]))


@pytest.mark.parametrize("case", list(CASES))
def test_a_model_brings_its_published_defaults(tmp_path, one_device, case):
    name, boundary = CASES[case]
    write_published(tmp_path / "wan", "bfloat16", boundary=boundary, case=case)
    model, wanted = read_model(tmp_path / "wan", None), PUBLISHED[name]
    sample = model.settings.sample
    assert model.name == name and (sample.solver, sample.time_grid) == ("unipc", "diffusers_unipc")
    for key in ("size", "frames", "fps", "steps", "negative_prompt"):
        assert getattr(sample, key) == getattr(wanted, key), key
    assert sample.shift == SHIFT and NEGATIVE_PROMPT in sample.negative_prompt
    guidance = [expert.guidance for expert in model.experts]
    assert guidance == [wanted.guidance, wanted.guidance_low][: 2 if boundary else 1]
    assert (sample.guidance, sample.guidance_low) == (wanted.guidance, wanted.guidance_low)
    assert model.experts[0].time_min == boundary == wanted.boundary


@pytest.mark.parametrize(
    "config, wanted",
    [
        ({"flow_shift": 3.0}, {"solver": "unipc", "time_grid": "diffusers_unipc", "shift": 3.0}),
        ({"flow_shift": None}, {"solver": "unipc", "time_grid": "diffusers_unipc"}),
        ({}, {"solver": "unipc", "time_grid": "diffusers_unipc"}),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 8},
            {"solver": "euler", "time_grid": "diffusers_euler", "shift": 8.0},
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "flow_shift": 5.0},
            {"solver": "dpm", "time_grid": "diffusers_dpm", "shift": 5.0},
        ),
    ],
)
def test_scheduler_files_are_read(tmp_path, config, wanted):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(config))
    changes, notes = scheduler_changes(path)
    assert changes == wanted and len(notes) == ("shift" not in wanted)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"_class_name": "DDIMScheduler"}, "no solver here is like DDIMScheduler"),
        ({"flow_shift": "five"}, "flow_shift is 'five'; a number above 0 is needed"),
        ({"flow_shift": -1}, "flow_shift is -1; a number above 0 is needed"),
    ],
)
def test_scheduler_files_that_can_not_be_used_are_told(tmp_path, config, words):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=words):
        scheduler_changes(path)


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float8_e4m3fn"])
def test_a_single_file_with_any_prefix_and_type_is_the_transformer(published, tmp_path, one_device, prefix, dtype):
    """As ComfyUI keeps it, with the config that tells the number of heads beside it."""
    kinds = {"float32": "F32", "float16": "F16", "float8_e4m3fn": "F8_E4M3"}
    cast = np.dtype(getattr(ml_dtypes, dtype, dtype))
    tensors = {name: x.astype(cast) for name, x in transformer_of(published).items()}
    entries = [Entry(prefix + name, x.shape, kinds[dtype]) for name, x in tensors.items()]
    if prefix:  # such files hold other models, too
        entries.append(Entry("first_stage_model.x", (1,), "F32"))
    write_tensors(
        tmp_path / "wan.safetensors", entries, [*tensors.values(), np.ones(1, np.float32)][: len(entries)]
    )
    shutil.copyfile(published / "transformer" / "config.json", tmp_path / "config.json")
    flags = [f"--from={tmp_path}/wan.safetensors", f"--rest={published}", f"--to={tmp_path}/out"]
    assert main(["convert", *flags]) == 0
    kernel = restored(tmp_path / "out")["transformer"]["blocks"]["mlp"]["up"]["kernel"][1]
    np.testing.assert_array_equal(kernel, tensors["blocks.1.ffn.net.0.proj.weight"].astype(np.float32).T)
    # Not diffusers' folder, so on Wan's own grid with the published shift.
    sample = read_meta(*find_checkpoint(tmp_path / "out"))[0].sample
    assert (sample.time_grid, sample.shift) == ("wan_unipc", PUBLISHED["wan2.1-t2v-1.3b"].shift)


def test_a_checkpoint_that_was_moved_finds_its_encoders(converted, tmp_path, monkeypatch, one_device):
    shutil.copytree(converted, tmp_path / "moved")
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved" / "scheduler")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("..", "../", "../../link", str(tmp_path / "moved")):
        settings, _ = read_meta(*find_checkpoint(pathlib.Path(path)))
        assert settings.text.weights == str(tmp_path / "moved" / "text_encoder")
    assert '"weights": "text_encoder"' in (converted / "settings.json").read_text()
    sample = ["--prompt=a bird", "--size=16x16", "--frames=1", "--steps=1", f"--out={tmp_path}/a.mp4"]
    assert main(["sample", "--checkpoint=~/moved/", *sample]) == 0


@pytest.mark.parametrize("path", ["wan", "wan/", "../{parent}/wan", "~/wan"])
def test_a_model_is_found_by_any_path(published, monkeypatch, capsys, path):
    monkeypatch.chdir(published.parent)
    monkeypatch.setenv("HOME", str(published.parent))
    path = path.format(parent=published.parent.name)
    before = sorted(published.parent.rglob("*"))
    assert main(["convert", f"--from={path}", "--check"]) == 0
    told = capsys.readouterr().err
    for words in (
        "wan2.1-t2v-1.3b, in the layout of diffusers",
        "tensors, ",
        "BF16",
        "disk: ",
        "memory to convert: ",
    ):
        assert words in told
    assert sorted(published.parent.rglob("*")) == before


def test_tensors_that_an_encoder_does_without_are_counted_and_unknown_ones_told(published, tmp_path, capsys):
    folder = tmp_path / "wan"
    shutil.copytree(published, folder)
    (file,) = (folder / "text_encoder").glob("*.safetensors")
    tensors = safetensors.numpy.load_file(file)
    extra = {name: np.ones(2, np.float32) for name in ("lm_head.weight", "decoder.final_layer_norm.weight")}
    safetensors.numpy.save_file(tensors | extra, file)
    assert main(["convert", f"--from={folder}", "--check"]) == 0
    assert "'decoder.final_layer_norm.weight' and 1 more left out" in capsys.readouterr().err.replace("\n", " ")
    safetensors.numpy.save_file(tensors | {"adapter.weight": np.ones(2, np.float32)}, file)
    assert main(["convert", f"--from={folder}", "--check"]) == 2
    assert "tensor 'adapter.weight' has no place in the model" in capsys.readouterr().err


PAIRS = [
    ("wan2.2_t2v_high_noise_14B_fp8_scaled", "wan2.2_t2v_low_noise_14B_fp8_scaled"),
    ("Wan2_2-T2V-A14B_HIGH_fp8_e4m3fn", "Wan2_2-T2V-A14B-LOW_fp8_e4m3fn"),
    ("t2v-highnoise", "t2v-lownoise"),
]


def write_experts(published, folder, *names):
    """Single files with prefixed names; the expert for low noise has the other one's weights, halved."""
    folder.mkdir()
    tensors = {PREFIX + name: x.astype(np.float32) for name, x in transformer_of(published).items()}
    for scale, name in zip((1.0, 0.5), names, strict=False):
        scaled = {key: np.float32(scale) * x for key, x in tensors.items()}
        safetensors.numpy.save_file(scaled, folder / f"{name}.safetensors")
    # Of so small a model the tensors do not tell the heads.
    shutil.copyfile(published / "transformer" / "config.json", folder / "config.json")


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("named", ["folder", "high", "low"])
def test_single_files_of_two_experts_are_one_model(published, tmp_path, one_device, names, named):
    folder = tmp_path / "comfy"
    write_experts(published, folder, *names)
    files = [folder / f"{name}.safetensors" for name in names]
    source = {"folder": folder, "high": files[0], "low": files[1]}[named]
    model = read_model(source, published)
    assert model.name == "wan2.2-t2v-a14b" and model.settings.sample.time_grid == "wan_unipc"
    boundary = PUBLISHED[model.name].boundary
    assert [(expert.time_min, expert.time_max) for expert in model.experts] == [(boundary, 1.0), (0.0, boundary)]
    assert [expert.where.stem for expert in model.experts] == list(names)
    bias = [expert.tensors["proj_out.bias"][...] for expert in model.experts]
    np.testing.assert_array_equal(bias[1], 0.5 * bias[0])


def test_single_files_of_two_experts_become_a_model_that_samples(published, tmp_path, capsys):
    write_experts(published, tmp_path / "comfy", *PAIRS[0])
    flags = [f"--from={tmp_path}/comfy", f"--rest={published}", f"--to={tmp_path}/out"]
    assert main(["convert", *flags]) == 0
    capsys.readouterr()
    size = ["--prompt=a bird", "--size=16x16", "--frames=1", "--steps=2", f"--out={tmp_path}/a.mp4"]
    assert main(["sample", f"--checkpoint={tmp_path}/out", *size]) == 0
    assert "guidance 4, guidance low 3" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    "names, source, words",
    [
        (PAIRS[0][:1], "", "high_noise_14B_fp8_scaled.safetensors: by its name the expert for high noise"),
        (PAIRS[0][1:], f"{PAIRS[0][1]}.safetensors", "put the file for high noise beside it"),
        ((PAIRS[0][0], PAIRS[1][1]), "", "put the file for high noise beside it"),
    ],
)
def test_one_of_two_experts_alone_is_told(published, tmp_path, capsys, names, source, words):
    write_experts(published, tmp_path / "comfy", *names)
    flags = [f"--from={tmp_path / 'comfy' / source}", f"--rest={published}", f"--to={tmp_path}/out"]
    assert main(["convert", *flags]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_folder_of_several_models_is_told(published, tmp_path, capsys):
    write_experts(published, tmp_path / "comfy", "first", "second")
    (tmp_path / "comfy" / "config.json").unlink()
    flags = [f"--from={tmp_path}/comfy", f"--rest={published}", f"--to={tmp_path}/out"]
    assert main(["convert", *flags]) == 2
    assert "2 .safetensors files with no config.json and no index; name one" in capsys.readouterr().err
