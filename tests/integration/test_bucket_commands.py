"""The commands on a disk, in gs:// and in s3://: prepare, train, go on, tools, sample, evaluate."""

import json

import numpy as np
import pytest
import tiny
import tiny_run
from PIL import Image

from sora_jax.checkpoint.meta import load_meta
from sora_jax.checkpoint.workdir import steps_in
from sora_jax.cli.main import main
from sora_jax.core.storage import copy_file, in_bucket
from sora_jax.data.records.records import Records
from sora_jax.generate.output.writer import read_metadata


@pytest.fixture
def config(tmp_path) -> str:
    (tmp_path / "config.py").write_text(tiny_run.CONFIG)
    return f"--config={tmp_path / 'config.py'}"


def run(name: str, *flags):
    assert main([*name.split(), *map(str, flags)]) == 0


def files_of(folder) -> dict[str, bytes]:
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items()}


def test_a_data_set_is_the_same_bytes_on_every_storage(folder, config, tmp_path):
    (tmp_path / "videos").mkdir(exist_ok=True)
    for n in range(6):
        Image.new("RGB", (32, 32), (40 * n,) * 3).save(tmp_path / f"videos/{n}.png")
        (tmp_path / f"videos/{n}.txt").write_text(f"square {n}")
    if in_bucket(folder):
        for path in (tmp_path / "videos").iterdir():
            copy_file(path, folder / "videos" / path.name)
    flags = ["--config.data.sizes=('32x32',)", "--config.data.frames=(1,)", "--config.data.validation=0.3"]
    run("prepare", config, f"--videos={tmp_path}/videos", f"--out={tmp_path}/there", *flags)
    run("prepare", config, f"--videos={folder}/videos", f"--out={folder}/here", *flags)
    here, there = files_of(folder / "here"), files_of(tmp_path / "there")
    for name in (".hashes.json",):  # of where the videos lie
        here.pop(name), there.pop(name)
    assert here == there and len(here) > 8
    run("data verify", f"--data={folder}/here")
    (folder / "videos/0.txt").write_text("another caption")
    run("prepare", config, f"--videos={folder}/videos", f"--out={folder}/here", *flags)
    records = Records(folder / "here", "pixels")
    captions = {clip.captions[0]: i for i, clip in enumerate(records.clips("train"))}
    for caption, i in captions.items():
        n = 0 if caption == "another caption" else int(caption[-1])
        assert np.abs(records.read("train", i).astype(int) - 40 * n).max() < 2
    assert not any(".unfinished" in name for name in files_of(folder / "here"))


@pytest.mark.parametrize(
    "folder",
    [pytest.param("disk", marks=pytest.mark.exhaustive), "gs", pytest.param("s3", marks=pytest.mark.exhaustive)],
    indirect=True,
)
def test_a_run_is_trained_stopped_continued_released_and_sampled(folder, config, tmp_path, capfd):
    tiny_run.write_data(folder / "data", "latents", tiny.SETTINGS.autoencoder)
    if in_bucket(folder):
        tiny_run.write_data(tmp_path / "data", "latents", tiny.SETTINGS.autoencoder)
        run("train", config, f"--config.data.path={tmp_path}/data", f"--workdir={tmp_path}/run")
        run(
            "train",
            config,
            f"--config.data.path={tmp_path}/data",
            f"--workdir={tmp_path}/run",
            "--config.train.steps=3",
        )
    train = [config, f"--config.data.path={folder}/data", f"--workdir={folder}/run"]
    run("train", *train)
    run("train", *train, "--config.train.steps=3")
    meta = load_meta(folder / "run/checkpoints", 3)
    if in_bucket(folder):  # to the last bit
        assert meta.leaves == load_meta(tmp_path / "run/checkpoints", 3).leaves
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert [p for p in (folder / "run/tensorboard").iterdir() if p.stat().st_size > 100]
    assert not (folder / "run/run.lock").exists()
    run("checkpoint verify", f"--workdir={folder}/run")
    run("checkpoint inspect", f"--workdir={folder}/run")
    run("checkpoint prune", f"--workdir={folder}/run", "--keep=1")
    assert steps_in(folder / "run/checkpoints") == [3]
    run("checkpoint release", f"--workdir={folder}/run", f"--out={folder}/released")
    for checkpoint in ("run", "released"):
        out = folder / f"{checkpoint}.mp4"
        run("sample", f"--checkpoint={folder}/{checkpoint}", "--prompt=a bird", f"--out={out}")
        assert read_metadata(out)["prompt"] == "a bird"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["gs", "s3"], indirect=True)
def test_sample_videos_profiles_and_reports_go_into_a_bucket(folder, config):
    tiny_run.write_data(folder / "data", "latents", tiny.SETTINGS.autoencoder)
    train = [config, f"--config.data.path={folder}/data", f"--workdir={folder}/run"]
    run("train", *train, "--config.train.sample_every=2", "--config.train.sample_prompts=('a bird',)")
    assert (folder / "run/samples/2/000.mp4").is_file() and "000.webp" in (folder / "run/index.html").read_text()
    run("train", *train, "--config.train.steps=4", "--config.train.profile=3:4")
    assert any(path.name.endswith(".xplane.pb") for path in (folder / "run/profiles").rglob("*"))
    run("evaluate", f"--checkpoint={folder}/run", "--suite=loss", f"--out={folder}/evaluation")
    assert (folder / "evaluation/index.html").is_file() and (folder / "evaluation/evaluation.json").is_file()
