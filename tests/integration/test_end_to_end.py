"""The whole way on real videos, through the command line: prepare, train, sample, evaluate."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from sora_jax.checkpoint.meta import load_meta, read_meta
from sora_jax.checkpoint.restore import abstract_on_mesh, restore_ema
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.cli.main import main
from sora_jax.core.mesh import make_mesh
from sora_jax.data.media.video import probe, read_clip
from sora_jax.data.records.records import Records
from sora_jax.generate.output.writer import read_metadata
from sora_jax.train.init_from import check_init_from, init_from
from sora_jax.train.objectives.registry import make_objective
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import init_state

CONFIG = """
import tiny
from sora_jax.config.load import to_config

def get_config():
    return to_config(tiny.change(
        tiny.SETTINGS,
        data={"fps": 8.0, "sizes": ("48", "80x32"), "frames": (9, 5, 1), "validation": 0.2,
              "sequence_length": 48, "text_length": 32, "clips_per_sequence": 4, "crop_size": "32x32",
              "crop_frames": 5},
        text={"vocabulary": 400, "max_tokens": 16},
        train={"steps": 4, "save_every": 2, "log_every": 1},
    ))
"""


class Run:
    """A workdir in which everything has been run once."""

    def __init__(self, folder, clips):
        self.folder, self.config = folder, folder / "config.py"
        self.config.write_text(CONFIG)
        self.command("prepare", f"--videos={clips}", f"--out={folder}/pixels")
        self.autoencoder(folder / "autoencoder")
        self.command(
            "prepare", f"--videos={clips}", f"--autoencoder={folder}/autoencoder", f"--out={folder}/latents"
        )
        self.latents = f"--config.data.path={folder}/latents"
        self.command("train", f"--workdir={folder}/model", self.latents)

    def autoencoder(self, workdir):
        self.command(
            "train",
            f"--workdir={workdir}",
            "--config.objective=autoencoder",
            "--config.data.image_share=0.5",
            "--config.loss.adversarial=0.5",
            "--config.loss.discriminator_width=4",
            f"--config.data.path={self.folder}/pixels",
        )

    def command(self, name, *flags):
        with_config = [f"--config={self.config}"] if name in ("prepare", "train") else []
        assert main([name, *with_config, *flags]) == 0


@pytest.fixture(scope="module")
def compiled():
    """Names of the programs that XLA has compiled while the test ran."""
    names = []

    def note(event, duration, *, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    return names


@pytest.fixture(scope="module")
def run(clips, tmp_path_factory, compiled):
    return Run(tmp_path_factory.mktemp("end-to-end"), clips)


def test_one_train_step_is_compiled_for_all_sizes_lengths_and_aspect_ratios(run, compiled):
    manifest = [json.loads(line) for line in (run.folder / "latents/manifest.jsonl").read_text().splitlines()]
    shapes = {tuple(clip["shape"][:3]) for clip in manifest if clip["split"] == "train"}
    assert len(shapes) >= 6
    assert {frames for frames, _, _ in shapes} == {1, 2, 3}
    assert len({h / w for _, h, w in shapes}) >= 3
    # The autoencoder's for clips and for pictures, and one for all that the transformer sees.
    assert sum("train_step" in name for name in compiled) == 3, compiled
    lines = (run.folder / "model/metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) and line["patches_per_s"] > 0 for line in metrics)


def test_training_goes_on_where_it_stopped(run):
    run.command("train", f"--workdir={run.folder}/model", run.latents, "--config.train.steps=6")
    lines = (run.folder / "model/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    whole = run.folder / "whole"
    run.command("train", f"--workdir={whole}", run.latents, "--config.train.steps=6")
    uninterrupted = (whole / "metrics.jsonl").read_text().splitlines()
    for resumed, straight in zip(lines, uninterrupted, strict=True):
        assert json.loads(resumed)["loss"] == json.loads(straight)["loss"]
    assert_same_states(run.folder / "model", whole, 6)


def test_a_time_budget_ends_a_run_which_then_has_nothing_left_to_do(run):
    workdir = run.folder / "timed"
    boxed = [f"--workdir={workdir}", run.latents, "--config.train.steps=999", "--config.train.minutes=0.001"]
    for _ in range(2):
        run.command("train", *boxed)
        assert find_checkpoint(workdir)[1] == 1
    run.command("train", *boxed[:-2], "--config.train.steps=2", "--config.train.minutes=999")
    assert find_checkpoint(workdir)[1] == 2


def assert_same_states(workdir, other, step):
    """Params, average, optimizer and step, to the last bit."""
    states = [load_meta(folder / "checkpoints", step).leaves for folder in (workdir, other)]
    assert states[0] == states[1]
    assert {name.split(".")[0] for name in states[0]} == {"step", "params", "ema", "opt_state"}


@pytest.mark.slow
def test_an_autoencoder_and_its_adversary_go_on_where_they_were_killed(run):
    killed = run.folder / "killed"
    shutil.copytree(run.folder / "autoencoder", killed)
    shutil.rmtree(killed / "checkpoints/4")
    run.autoencoder(killed)
    assert_same_states(run.folder / "autoencoder", killed, 4)
    leaves = load_meta(killed / "checkpoints", 4).leaves
    assert any(name.startswith("opt_state") and "discriminator" in name for name in leaves)


@pytest.mark.parametrize("size, frames", [("64x32", 9), ("32x48", 5), ("48x48", 1)])
def test_sample_writes_a_video_of_the_size_and_length_asked_for(run, size, frames):
    out = run.folder / f"{size}-{frames}.mp4"
    run.command(
        "sample",
        f"--checkpoint={run.folder}/model",
        "--prompt=a rabbit",
        f"--size={size}",
        f"--frames={frames}",
        "--steps=2",
        "--solver=heun",
        "--seed=3",
        f"--out={out}",
    )
    video = probe(out)
    assert (f"{video.width}x{video.height}", video.frames) == (size, frames)
    made = read_clip(video, (video.height, video.width), fps=16.0, frames=frames)
    assert made.std() > 1
    metadata = read_metadata(out)
    assert metadata["prompt"] == "a rabbit" and metadata["seed"] == 3 and metadata["solver"] == "heun"


def test_a_run_begins_with_the_averaged_weights_of_another(run):
    for name, group in (("model", "transformer"), ("autoencoder", "autoencoder")):
        folder, step = find_checkpoint(run.folder / name)
        settings = tiny.change(read_meta(folder, step)[0], train={"init_from": str(run.folder / name)})
        with jax.set_mesh(make_mesh(settings.mesh)):
            objective = make_objective(settings)
            kind = "latents" if name == "model" else "pixels"
            check_init_from(settings, Records(settings.data.path, kind))
            fresh = init_state(objective, make_optimizer(settings.optimizer, 1), jax.random.key(9))
            state = init_from(settings, fresh)
            before = restore_ema(folder, step, abstract_on_mesh(fresh.params))
        for now in (state.params, state.ema):
            assert jax.tree.all(jax.tree.map(np.array_equal, now[group], before[group]))
        # What the source has none of stays as it was: another run, another adversary.
        if name == "autoencoder":
            assert state.params["discriminator"] is fresh.params["discriminator"]
        assert not jax.tree.all(jax.tree.map(np.array_equal, fresh.params, before))


def test_weights_of_another_model_or_other_data_are_refused(run, capsys):
    for workdir, flags, words in (
        ("model", ["--config.text.layers=3"], "made with config.text.layers=2, now 3"),
        ("autoencoder", ["--config.objective=autoencoder", "--config.autoencoder.blocks=2"], "blocks=1, now 2"),
        ("modle", [], "did you mean 'model'?"),
    ):
        flags = [*flags, f"--config.train.init_from={run.folder / workdir}", f"--workdir={run.folder}/other"]
        kind = "pixels" if workdir == "autoencoder" else "latents"
        argv = ["train", f"--config={run.config}", f"--config.data.path={run.folder / kind}", *flags]
        assert main(argv) == 2
        assert words in capsys.readouterr().err and not (run.folder / "other").exists()


def test_evaluate_reports_loss_by_time_size_and_length(run):
    out = run.folder / "report"
    run.command("evaluate", f"--checkpoint={run.folder}/model", f"--out={out}")
    (found,) = json.loads((out / "evaluation.json").read_text())["checkpoints"]
    result = found["loss"]
    assert len(result["by_time"]) == 10 and len(result["by_size"]) >= 2 and len(result["by_frames"]) >= 2
    # A fresh model predicts nothing: its loss is the mean square of noise - data, about 1 + the data's own.
    assert 0.5 < result["loss"] < 5 and result["clips"] > 2
    assert (out / "index.html").exists()
    again = run.folder / "again"
    run.command("evaluate", f"--checkpoint={run.folder}/model", f"--out={again}")
    assert json.loads((again / "evaluation.json").read_text())["checkpoints"] == [found]


def test_evaluate_reports_how_the_autoencoder_reconstructs(run, clips):
    folder, out = run.folder / "one", run.folder / "reconstruction"
    folder.mkdir()
    (folder / "carphone.mp4").symlink_to(clips / "carphone.mp4")
    run.command("prepare", f"--videos={folder}", f"--out={folder}/pixels", "--config.data.frames=(5,)")
    run.command("evaluate", f"--checkpoint={run.folder}/autoencoder", f"--data={folder}/pixels", f"--out={out}")
    (found,) = json.loads((out / "evaluation.json").read_text())["checkpoints"]
    result = found["reconstruction"]
    assert 3 < result["psnr"] < 60 and -1 <= result["ssim"] <= 1
    assert len(result["clips"]) > 2 and result["clips"][0]["source"] == "carphone.mp4"
    assert list(out.glob("step-*/reconstruction-0.png")) and (out / "index.html").exists()
