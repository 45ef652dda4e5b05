"""Errors of input with a trained model: each in one line, with nothing written and nothing lost."""

import dataclasses
import gc
import json
import pathlib
import re
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_run
from tensorboardX.proto.event_pb2 import Event
from tiny_run import CONFIG, SETTINGS, Disk, write_data

from sora_jax.checkpoint.manager import Checkpoints
from sora_jax.checkpoint.meta import load_meta, read_meta
from sora_jax.checkpoint.restore import abstract_on_mesh, restore_ema
from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.models.layers.params import abstract_params
from sora_jax.models.video_model import VideoModel
from sora_jax.train.state import TrainState


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Every run of this module is of one model."""
    with tiny_run.compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a config, data of both kinds, and a run of two steps."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "config.py").write_text(CONFIG)
    for kind in ("pixels", "latents"):
        write_data(folder / kind, kind, SETTINGS.autoencoder)
    assert main(["train", *train_flags(folder), f"--workdir={folder}/run"]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(home, tmp_path, monkeypatch):
    """The current folder of each test, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_flags(home):
    return [f"--config={home}/config.py", f"--config.data.path={home}/latents"]


def told(capsys, *argv: str) -> str:
    """The one line of an error."""
    assert main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"sora-jax {argv[0]}: "), err
    return err


def files_in(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def averages(workdir: pathlib.Path, step: int) -> dict:
    """The averaged parameters of a checkpoint, as numpy."""
    with jax.set_mesh(make_mesh(MeshSettings())):
        abstract = abstract_params(VideoModel, SETTINGS)
        return jax.device_get(restore_ema(workdir / "checkpoints", step, abstract_on_mesh(abstract)))


# sample ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--prompt="], "--prompt: is empty"),
        (["--prompt= \n "], "--prompt: is empty"),
        (["--prompt=" + "rabbit " * 14_286], "--prompt: 100,002 characters; the limit is 10,000"),
        (["--prompt=a", "--negative-prompt=" + "x" * 10_001], "--negative-prompt: 10,001 characters"),
        (["--prompts=absent.txt"], "--prompts=absent.txt: no such file"),
        (["--prompt=a", "--size=33x32"], "the width 33 is no multiple of 16; the nearest are 32 and 48"),
        (["--prompt=a", "--size=32x8"], "the height 8 is no multiple of 16; the nearest are 16 and 32"),
        (["--prompt=a", "--size=large"], "--size: 'large' is no size"),
        (["--prompt=a", "--frames=6"], "--frames=6: must be 4 n + 1; the nearest are 5 and 9"),
        (["--prompt=a", "--frames=0"], "sample.frames: 0 must be at least 1"),
        (["--prompt=a", "--solver=eule"], "sample.solver: 'eule'? did you mean 'euler'?"),
        (["--prompt=a", "--steps=0"], "sample.steps: 0 must be at least 1"),
        (["--prompt=a", "--guidance=nan"], "sample.guidance: nan"),
        (["--prompt=a", "--shift=-1"], "sample.shift: -1.0"),
        (["--prompt=a", "--fps=0"], "sample.fps: 0.0"),
        (["--prompt=a", "--out=video.gif"], "video.gif: videos are written as .mp4"),
        (["--prompt=a", "--prompt=b"], "is one file for 2 prompts; name a folder"),
        (
            ["--prompt=a", "--mesh=data=3"],
            "data 3 x fsdp 1 x ring 1 x ulysses 1 x tensor 1 = 3 devices, but 8 are there",
        ),
    ],
    ids=lambda value: value[-1][:20] if isinstance(value, list) else "",
)
def test_sample_tells_what_it_cannot_make(home, here, capsys, flags, words):
    assert words in told(capsys, "sample", f"--checkpoint={home}/run", "--out=video.mp4", *flags)
    assert files_in(here) == {}


def test_a_workdir_that_lost_a_part_is_told(home, here, capsys):
    shutil.copytree(home / "run", here / "run")
    flags = ["--checkpoint=run", "--prompt=a", "--out=video.mp4"]
    (here / "run/tokenizer.model").rename(here / "tokenizer.model")
    assert "run/tokenizer.model: no such tokenizer" in told(capsys, "sample", *flags)
    (here / "run/autoencoder/model.safetensors").write_bytes(b"half")
    assert "model.safetensors: no readable safetensors file" in told(capsys, "sample", *flags)
    shutil.rmtree(here / "run/autoencoder")
    assert "run/autoencoder: no such folder" in told(capsys, "sample", *flags)
    assert not (here / "video.mp4").exists()


def test_a_checkpoint_of_an_autoencoder_makes_no_videos_and_has_no_report_before_its_end(home, here, capsys):
    data = {"path": str(home / "pixels")}
    settings = dataclasses.replace(tiny.change(SETTINGS, data=data), objective="autoencoder")
    state = TrainState(jnp.asarray(3), {"x": jnp.ones(2)}, {"x": jnp.ones(2)}, ())
    with Checkpoints(here / "run", keep=1) as checkpoints:
        checkpoints.save(state, settings, "")
    flags = ["--prompt=a", "--out=video.mp4"]
    assert "its checkpoint is an autoencoder" in told(capsys, "sample", "--checkpoint=run", *flags)
    assert "run: its training has not ended" in told(capsys, "evaluate", "--checkpoint=run")
    assert not (here / "video.mp4").exists() and not (here / "run/evaluation").exists()


@pytest.mark.parametrize(
    "flags, error",
    [
        (["--lower-end"], "--lower-end: is for --require alone"),
        (["--keep-best"], "--keep-best: is for --watch alone"),
        (["--port=80"], "--port: is for --vote alone"),
        (["--vote", "--require=shapes.all >= 1"], "--require: --vote measures nothing"),
        (["--vote", "--suite=shapes"], "--suite: --vote measures nothing"),
    ],
)
def test_a_flag_that_the_others_leave_without_a_use_is_refused(capsys, flags, error):
    assert error in told(capsys, "evaluate", *flags)


def test_data_that_have_moved_are_told(home, here, capsys):
    shutil.copytree(home / "latents", here / "moved")
    flags = [f"--checkpoint={home}/run", "--out=report"]
    assert "did you mean 'moved'?" in told(capsys, "evaluate", *flags, "--data=moverd")
    assert not (here / "report").exists()


# train -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--config.transformer.width=96"], "made with config.transformer.width=48, now 96"),
        (["--config.text.layers=3"], "made with config.text.layers=2, now 3"),
        (
            ["--config.data.sequence_length=3"],
            "config.data.sequence_length: 3 patches are too few for 8 of 8 clips",
        ),
        (["--config.text.vocabulary=100"], "config.text.vocabulary: 100 is less than"),
        (["--config.objective=autoencoder"], "holds latents, not pixels; run `prepare` without --autoencoder"),
        (["--config.autoencoder.temporal=(True,True,True)"], "its temporal_stride is 8, but that of"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_workdir_of_another_model_is_told_and_left_alone(home, capsys, flags, words):
    before = files_in(home / "run")
    flags = [*flags, "--config.train.steps=3"]
    assert words in told(capsys, "train", *train_flags(home), *flags, f"--workdir={home}/run")
    assert files_in(home / "run") == before


def test_an_autoencoder_that_cannot_be_is_told_before_anything_is_written(home, here, capsys):
    flags = ["--config.objective=autoencoder", "--config.autoencoder.multipliers=(1,2)", "--workdir=run"]
    data = f"--config.data.path={home}/pixels"
    assert "config.autoencoder.temporal: 3 values" in told(capsys, "train", *train_flags(home), data, *flags)
    flags = ["--config.objective=autoencoder", "--config.data.crop_frames=6", "--workdir=run"]
    assert "config.data.crop_frames: 6 must be 4 n + 1" in told(capsys, "train", *train_flags(home), data, *flags)
    assert list(here.iterdir()) == []


def test_other_devices_or_processes_than_the_launcher_promised_are_told(home, capsys, monkeypatch):
    before = files_in(home / "run")
    for name, value, words in (
        (
            "SORA_JAX_NUM_DEVICES",
            "4",
            "8 cpu devices are there, 8 in each of 1 processes, but SORA_JAX_N",
        ),
        ("SORA_JAX_NUM_PROCESSES", "2", "SORA_JAX_NUM_PROCESSES=2, but JAX finds no cluster here"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert words in told(capsys, "train", *train_flags(home), f"--workdir={home}/run")
    assert files_in(home / "run") == before


def test_a_workdir_that_cannot_be_is_told(home, here, capsys):
    (here / "file").write_text("")
    line = told(capsys, "train", *train_flags(home), "--workdir=file/run")
    assert "can't be written, a file stands where a folder should be" in line
    assert files_in(here) == {str(here / "file"): b""}


def test_a_broken_checkpoint_is_set_aside_and_the_run_ends_as_if_nothing_had_been(home, here, capfd):
    shutil.copytree(home / "run", here / "run")
    file = max((here / "run/checkpoints/2").rglob("d/*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:100])
    assert main(["train", *train_flags(home), "--workdir=run"]) == 0
    err = capfd.readouterr().err
    assert "is broken, " in err and "set aside as 2.broken, step 1 is taken" in err and "Traceback" not in err
    same = [load_meta(folder / "run/checkpoints", 2).leaves for folder in (home, here)]
    assert same[0] == same[1]


def test_checkpoints_are_looked_at_verified_and_thrown_away(home, here, capfd):
    shutil.copytree(home / "run", here / "run")

    def lines(name, *flags):
        assert main([*f"checkpoint {name}".split(), "--workdir=run", *flags]) == 0
        return capfd.readouterr().err

    assert "objective: flow" in lines("inspect") and "2/2" not in lines("inspect")
    assert lines("verify").count("arrays are whole") == 2
    folder = here / "run/checkpoints"
    shutil.copytree(folder / "1", folder / "1.broken")
    assert lines("prune", "--keep=1", "--dry-run").count("would be deleted") == 2 and (folder / "1").exists()
    lines("prune", "--keep=1", "--keep-every=1")
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    lines("prune", "--keep=1")
    assert sorted(path.name for path in folder.iterdir()) == ["2"]
    file = max((folder / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:100])
    assert main(["checkpoint", "verify", "--workdir=run"]) == 2
    assert "checkpoints/2: is broken, " in capfd.readouterr().err


@pytest.mark.slow
def test_clips_without_numbers_end_a_run_and_other_data_are_told(home, here, capfd):
    write_data(here / "latents", "latents", SETTINGS.autoencoder, value=np.nan)
    shutil.copytree(home / "run", here / "run")
    flags = [f"--config={home}/config.py", f"--config.data.path={here}/latents", "--workdir=run"]
    assert main(["train", *flags, "--config.train.steps=9", "--config.train.bad_steps=3"]) == 2
    err = capfd.readouterr().err
    assert "is not the data set of the steps before" in err
    last = err.splitlines()[-1]
    assert "not finite in 3 updates in a row, 3 to 5, on clips of all-nan-" in last
    assert set(json.loads((here / "run/bad_batches.json").read_text())) == {"3", "4", "5"}
    good, skipped = (averages(folder / "run", step) for folder, step in ((home, 2), (here, 4)))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, good, skipped)))


@pytest.fixture
def disk(home, here):
    """Room for a run with two checkpoints, and half of a third."""
    sizes = {path: path.stat().st_size for path in (home / "run").rglob("*") if path.is_file()}
    one = sum(size for path, size in sizes.items() if "checkpoints/1" in str(path))
    try:
        disk = Disk(here / "disk", sum(sizes.values()) + one // 2)
    except PermissionError as error:
        pytest.skip(str(error))
    yield disk
    disk.close()


@pytest.mark.slow
# TensorStore may still call back into the event loop that Orbax has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_stops_training_in_one_line_and_loses_no_checkpoint(home, disk, capfd, caplog):
    workdir = disk.path / "run"
    flags = [*train_flags(home), "--config.train.steps=5", "--config.train.keep=9", f"--workdir={workdir}"]
    assert main(["train", *flags]) == 2
    gc.collect()
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("flow: ", "step "))]
    assert len(lines) == 1 and lines[0].startswith("sora-jax train: "), lines
    told = re.search(r"run/checkpoints: .* is full: it needs ([\d.]+) MB, and ([\d.]+) MB are free", lines[0])
    assert told and float(told[1]) > float(told[2]), lines
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []

    complete = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert complete and complete[0] == 1 and f"step {complete[-1]} is complete and stays; make room" in lines[0]
    for step in complete[:2]:
        same = jax.tree.map(np.array_equal, averages(workdir, step), averages(home / "run", step))
        assert all(jax.tree.leaves(same))

    disk.grow(2**28)
    assert main(["train", *flags]) == 0
    assert f"step {complete[-1]} of 5" in capfd.readouterr().err
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5]
    assert read_meta(workdir / "checkpoints", 5)[0].train.steps == 5


def test_a_full_disk_stops_metrics_in_one_line(home, disk, capfd):
    room = 2**16
    (disk.path / "other").write_bytes(bytes(shutil.disk_usage(disk.path).free - room))
    folder = [f"--workdir={disk.path / 'run'}", "--config.train.save_every=1000"]
    assert main(["train", *train_flags(home), *folder]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "can't be written, the disk is full" in line] == lines[-1:]


# What a good run writes ------------------------------------------------------------------------------------------


def test_tensorboard_gets_the_numbers_of_the_metrics(home):
    (file,) = (home / "run/tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:  # records of length, its checksum, the event, its checksum
        (size,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    metrics = [json.loads(line) for line in (home / "run/metrics.jsonl").read_text().splitlines()]
    scalars = [{"step": event.step} | {v.tag: v.simple_value for v in event.summary.value} for event in events]
    scalars = [values for values in scalars if len(values) > 1]
    assert [values["step"] for values in scalars] == [1, 2]
    for written, line in zip(scalars, metrics, strict=True):
        assert written == pytest.approx(line)
