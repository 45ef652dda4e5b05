"""The model that comes with the package, as a user meets it who has just installed it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sora_jax.checkpoint.model_folder import load_model, save_model
from sora_jax.checkpoint.workdir import RELEASED, STEP
from sora_jax.cli.main import main
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.data.media.video import probe, read_clip
from sora_jax.evaluate.benchmark import read_video
from sora_jax.evaluate.metrics.reconstruction import measure_reconstruction
from sora_jax.generate.output.writer import read_metadata
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.modulation import sinusoid
from sora_jax.models.video_model import VideoModel
from sora_jax.worlds.shapes import SHIPPED_AUTOENCODER, SHIPPED_MODEL
from sora_jax.worlds.shapes.detector import read_scene
from sora_jax.worlds.shapes.renderer import BACKGROUNDS, render, sample_scene

UNSEEN = 12345  # a seed of the world that nothing was trained on
FEW = ["--steps=8", "--seed=3"]
THING = ("yellow", "circle")
VERB = "import sys; from sora_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
DEMO = """
import dataclasses, pathlib, sys
import rich.console
from sora_jax.worlds.shapes import demo
# Compiled and sampled sooner.
rolled = dataclasses.replace(demo.SHIPPED.transformer, unroll=1)
demo.SHIPPED = dataclasses.replace(demo.SHIPPED, transformer=rolled)
demo.STEPS, demo.PROMPTS, demo.LEAST_SECONDS = 2, 2, 0.1
demo.demo(pathlib.Path(sys.argv[1]), console=rich.console.Console(quiet=True), minutes=0.1)
"""


def sampled(out, *flags):
    assert main(["sample", f"--out={out}", *flags]) == 0
    return out


def on_one_device(program, *arguments):
    """What a program told, run as on a laptop: for the eight devices of the tests it would compile for minutes."""
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "JAX_COMPILATION_CACHE_DIR": os.environ["SORA_JAX_COMPILED"],
    }
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, timeout=900, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def frames_of(path):
    video = probe(path)
    return read_clip(video, (video.height, video.width), fps=16.0, frames=1)


def test_what_ships_is_small_and_holds_no_pickle():
    files = [path for path in SHIPPED_MODEL.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".model"}
    assert sum(path.stat().st_size for path in files) < 40e6


def test_the_autoencoder_that_ships_reconstructs_unseen_clips():
    with jax.set_mesh(tiny.mesh_of()):
        settings, params = load_model(SHIPPED_AUTOENCODER, Autoencoder, AutoencoderSettings)
        measured = []
        for index in range(8):
            video = render(sample_scene(UNSEEN, index, held_out=index % 2 == 0), frames=17, size=(64, 64))
            measured.append(measure_reconstruction(params, settings, video)[0])
    assert np.mean([values["psnr"] for values in measured]) > 33
    assert np.mean([values["ssim"] for values in measured]) > 0.96


def test_a_prompt_is_all_that_sample_needs(tmp_path):
    prompt = "a small red circle moves left on a blue background"
    out = sampled(tmp_path / "red.mp4", f"--prompt={prompt}", "--steps=2", "--guidance=1")
    assert read_metadata(out)["prompt"] == prompt
    assert probe(out).frames == 17 and not list(SHIPPED_MODEL.rglob("*.tmp"))


def test_the_model_that_ships_hears_its_prompts(tmp_path):
    asked = [name for name in BACKGROUNDS for _ in range(2)]
    prompts = [f"a large yellow circle on a {name} background" for name in asked]
    sampled(tmp_path, *(f"--prompt={prompt}" for prompt in prompts), "--frames=1", *FEW)
    seen = [read_scene(frames_of(tmp_path / f"{n:03}.mp4")) for n in range(len(asked))]
    right = [
        scene is not None and scene.background == name and [(t.colour, t.shape) for t in scene.things] == [THING]
        for scene, name in zip(seen, asked, strict=True)
    ]
    assert np.mean(right) > 0.7


@pytest.mark.slow
def test_the_model_that_ships_moves_things_as_asked(tmp_path):
    ways = ("left", "right", "up", "down")
    prompts = [f"a small red circle moves {way} on a blue background" for way in ways]
    sampled(tmp_path, *(f"--prompt={prompt}" for prompt in prompts), "--steps=20", "--seed=3")
    seen = [read_scene(read_video(tmp_path / f"{n:03}.mp4")) for n in range(len(ways))]
    moved = [scene and scene.things[0].motion for scene in seen]
    assert sum(way == asked for way, asked in zip(moved, ways, strict=True)) > 2, moved


def cut_text(params):
    """Nothing of the text reaches the patches."""
    out = params["transformer"]["blocks"]["cross_attention"]["out"]
    out.update(jax.tree.map(jnp.zeros_like, out))


def frozen_time(params):
    """Whatever the time, the model is told that there is no noise."""
    into = params["transformer"]["time_in"]
    into["bias"] += sinusoid(jnp.zeros(()), len(into["kernel"])) @ into["kernel"]
    into["kernel"] = jnp.zeros_like(into["kernel"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "breaks, samples",  # that no scene is seen is plain sooner
    [
        pytest.param(None, 40, id="whole", marks=pytest.mark.exhaustive),
        pytest.param(cut_text, 40, id="text cut", marks=pytest.mark.exhaustive),
        pytest.param(frozen_time, 16, id="time frozen"),
    ],
)
def test_the_shapes_suite_fails_the_model_that_ships_when_it_is_broken(tmp_path, capsys, breaks, samples):
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED_MODEL, folder)
    with jax.set_mesh(tiny.mesh_of()):
        settings, params = load_model(folder / RELEASED, VideoModel, Settings)
        settings = tiny.change(settings, sample={"steps": 10})
        if breaks:
            breaks(params)
        save_model(folder / RELEASED, VideoModel, settings, params, dtype="bfloat16", metadata={STEP: "1"})
    flags = ["--suite=shapes", "--frames=1", f"--samples={samples}"]
    assert main(["evaluate", f"--checkpoint={folder}", *flags]) == (3 if breaks else 0)
    told = capsys.readouterr()
    assert ("FAULT" in told.out + told.err) == bool(breaks)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_long_videos_of_the_model_that_ships_are_measured_once_and_do_not_drift(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt = "a large green square moves up on a black background"
    (tmp_path / "prompts.txt").write_text(f"{prompt}\n")
    flags = ["--suite=long", "--seconds=2", "--samples=1", "--prompts=prompts.txt", "--out=report"]
    on_one_device(VERB, "evaluate", *flags)
    (kept,) = pathlib.Path("report").glob("*/long-*.json")
    (found,) = json.loads(kept.read_text())["values"]["by_cell"].values()
    assert len(found["spans"]) == 6 and all(span["as asked"] == 1 for span in found["spans"])
    assert all(span["colour"] < 10 and 0.7 < span["sharpness"] < 1.4 for span in found["spans"])
    video = tmp_path / kept.parent / found["videos"][0]["video"]
    assert probe(video).frames == 32 and read_metadata(video)["prompt"] == prompt
    page = pathlib.Path("report/index.html").read_text()
    assert {"long.png", "sheet.png", video.name} <= set(page.replace('"', "/").split("/"))
    assert "long: already measured" in on_one_device(VERB, "evaluate", *flags)


@pytest.mark.slow
def test_the_demo_shows_samples_before_and_after(tmp_path):
    on_one_device(DEMO, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert "of 2 captions were shown before" in page
    before, after = ((tmp_path / name / "000.mp4").read_bytes() for name in ("before", "after"))
    assert before != after
