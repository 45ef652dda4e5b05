"""The Python API makes what the commands make, and importing it costs next to nothing."""

import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

import sora_jax
from sora_jax.cli.main import main
from sora_jax.core.errors import InputError
from sora_jax.generate.output.writer import read_metadata

SMALL = {"steps": 2, "frames": 5}


@pytest.fixture(scope="module")
def model(home):
    return sora_jax.load(home / "run")


def modules_after(code: str) -> set[str]:
    """The modules that a new Python has after it has run this."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split())


def test_importing_sora_jax_imports_nothing_else():
    new = modules_after("import sora_jax") - modules_after("import typing")
    assert "sora_jax" in new and {name.split(".")[0] for name in new} <= sys.stdlib_module_names | {"sora_jax"}
    assert [name for name in new if name.startswith("sora_jax.")] == []


def test_loading_a_model_imports_nothing_that_trains():
    trains = {"grain", "tensorflow_datasets", "sora_jax.train.loop"}
    assert not trains & modules_after("import sora_jax; sora_jax.load")


def test_a_video_from_python_is_the_command_s_byte_for_byte(home, model, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    flags = ["--checkpoint=run", "--prompt=a bird", "--seed=3", "--steps=2", "--frames=5"]
    assert main(["sample", *flags, f"--out={tmp_path}/command.mp4"]) == 0
    video = model.sample("a bird", seed=3, **SMALL)
    assert video.frames.shape == (5, 64, 64, 3) and video.frames.dtype == np.uint8 and video.fps == 16
    video.save(tmp_path / "python.mp4")
    assert (tmp_path / "python.mp4").read_bytes() == (tmp_path / "command.mp4").read_bytes()
    assert video.metadata["prompt"] == read_metadata(tmp_path / "python.mp4")["prompt"] == "a bird"
    written = model.sample("a bird", seed=3, out=tmp_path / "written.mp4", **SMALL)
    assert written.path.read_bytes() == (tmp_path / "command.mp4").read_bytes()
    assert written.frames.shape == video.frames.shape and written.save(tmp_path / "copy.mp4").exists()
    assert video._repr_html_().startswith("<video controls loop") and "64x64, 5 frames, 16 fps" in repr(video)


def test_many_prompts_give_a_list_and_tell_their_progress(model):
    seen = []
    made = model.sample(
        ["a bird", "a rabbit"], on_progress=lambda done, total: seen.append((done, total)), **SMALL
    )
    assert [video.prompt for video in made] == ["a bird", "a rabbit"] and seen == [(1, 2), (2, 2)]
    assert np.abs(made[0].frames.astype(int) - made[1].frames).max() > 1


def test_every_task_takes_arrays_pictures_and_videos(home, model):
    picture = PIL.Image.open(home / "picture.png")
    video = model.image_to_video("a bird", picture, **SMALL)
    longer = model.extend("a bird", video, 0.5, **SMALL)
    assert len(longer.frames) > len(video.frames)
    between = model.connect("a bird", home / "tall.mp4", longer, 0.25, steps=2)
    assert between.metadata["task"] == "connect"
    assert model.loop("a bird", **SMALL).metadata["task"] == "loop"
    assert model.interpolate("a bird", {0.0: picture, 0.25: np.zeros((64, 64, 3), np.uint8)}, **SMALL).seconds > 0
    same = model.edit("a bird", longer.frames, strength=0.0, frames=5)
    assert np.abs(same.frames.astype(int) - longer.frames[:5]).mean() < 60  # through an untrained autoencoder


def test_a_stream_gives_frames_until_its_reader_leaves(model):
    with model.stream("a bird", frames=9, steps=1) as video:
        chunks = iter(video)
        first = next(chunks)
        video.prompt = "a rabbit"
        assert first.shape == (1, 64, 64, 3) and [len(next(chunks)) for _ in range(5)] == [2] * 5
    with pytest.raises(InputError, match="stepps: no such option"):
        model.stream("a bird", stepps=3)


def test_what_can_not_be_made_is_said_in_one_line(model, home):
    with pytest.raises(InputError, match="this package does not have its weights"):
        sora_jax.load("emoji")
    with pytest.raises(InputError, match="nowhere"):
        sora_jax.load(home / "nowhere")
    with pytest.raises(InputError, match="stepps: no such option, did you mean 'steps'"):
        model.sample("a bird", stepps=3)
    with pytest.raises(InputError, match="no such option"):
        sora_jax.evaluate(home / "run", stepps=3)
    with pytest.raises(AttributeError, match="nothing"):
        sora_jax.nothing  # noqa: B018


def test_training_and_evaluation_are_called_by_the_names_of_their_packages():
    import sora_jax.api.runs
    import sora_jax.train.loop

    assert callable(sora_jax.train) and callable(sora_jax.evaluate)
    assert sora_jax.train.loop.train is not sora_jax.api.train
    with pytest.raises(InputError, match="--out is missing"):
        sora_jax.evaluate(["a", "b"])


def test_the_reference_is_that_of_the_docstrings():
    from sora_jax.api.reference import page

    path = pathlib.Path(__file__).parent.parent.parent / "docs/reference/python.md"
    assert path.read_text() == page(), "run: python -m sora_jax.api.reference docs/reference"
