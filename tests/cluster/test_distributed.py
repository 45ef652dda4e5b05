"""Many processes: two of four devices each do what one of eight does, and any quiet difference stops them."""

import json
import shutil

import jax
import numpy as np
import processes
import pytest
import tiny

from sora_jax.checkpoint.model_folder import save_model
from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.data.media.video import probe, read_clip
from sora_jax.data.records.records import Records
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import init_params
from sora_jax.worlds.shapes.renderer import World, write_world

CONFIG = """
import tiny
from sora_jax.config.load import to_config

def get_config():
    return to_config(tiny.change(
        tiny.SETTINGS,
        data={"fps": 16.0, "sizes": ("32",), "frames": (9, 1), "validation": 0.3, "sequence_length": 64,
              "text_length": 64, "clips_per_sequence": 4, "crop_size": "32x32", "crop_frames": 5},
        text={"vocabulary": 400, "max_tokens": 16, "heads": 8},
        transformer={"heads": 8, "width": 96},
        train={"steps": 2, "save_every": 1, "log_every": 1},
    ))
"""
WITHIN = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.ulysses=2"]
# Each process holds every row, and half of the tokens.
ACROSS = ["--config.mesh.data=1", "--config.mesh.ulysses=4", "--config.mesh.tensor=2"]


class Home:
    """Ten short videos, a tiny autoencoder, and the verbs that lead from them to a report, in a folder of runs."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "config.py").write_text(CONFIG)
        write_world(folder / "videos", 10, World(seed=1, sizes=("32x32",), lengths=(9, 18, 1)))
        settings = tiny.SETTINGS.autoencoder
        with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
            params = jax.jit(lambda: init_params(Autoencoder, settings, jax.random.key(0)))()
            save_model(folder / "autoencoder", Autoencoder, settings, params)

    def prepare(self, run, *flags):
        out = f"--out={self.folder}/{run}/data"
        return ["prepare", f"--config={self.folder}/config.py", f"--videos={self.folder}/videos", out, *flags]

    def latents(self, run):
        return self.prepare(run, f"--autoencoder={self.folder}/autoencoder")

    def train(self, run, steps, *flags):
        folder = self.folder / run
        named = [f"--config.data.path={folder}/data", f"--workdir={folder}/model"]
        return ["train", f"--config={self.folder}/config.py", f"--config.train.steps={steps}", *named, *flags]

    def sample(self, run):
        folder = self.folder / run
        wish = ["--prompt=a red circle", "--prompt=a blue square", "--size=32x32", "--frames=5", "--steps=2"]
        return [
            "sample",
            f"--checkpoint={folder}/model",
            f"--out={folder}/videos",
            *wish,
            "--mesh=data=2,ulysses=4",
        ]

    def evaluate(self, run):
        return ["evaluate", f"--checkpoint={self.folder}/{run}/model", "--mesh=data=4,ulysses=2"]

    def latents_of_one(self):
        """A data set that this process has prepared, once."""
        if not (self.folder / "latents").exists():
            assert main(self.latents("latents")) == 0
        return self.folder / "latents/data"

    def report(self, run):
        text = (self.folder / run / "model/evaluation/evaluation.json").read_text()
        return json.loads(text)["checkpoints"][0]["loss"]

    def losses(self, run):
        lines = (self.folder / run / "model/metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("distributed"))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_learn_what_one_does_from_videos_that_are_encoded_in_the_step(home):
    """The same loss at each update: rows and their videos are split over the processes and over micro-batches."""
    assert main(home.prepare("pair")) == 0
    shutil.copytree(home.folder / "pair", home.folder / "alone")
    encode = f"--config.data.autoencoder={home.folder}/autoencoder"
    flags = [encode, "--config.train.accumulate=2", "--config.mesh.data=4", "--config.mesh.ulysses=2"]
    (code, first), (other_code, other) = processes.run(home.train("pair", 3, *flags))
    assert (code, other_code) == (0, 0), first + other
    assert "step 3/3" in first and "step" not in other
    assert main(home.train("alone", 3, *flags)) == 0
    assert len(set(home.losses("alone"))) == 3
    np.testing.assert_allclose(home.losses("pair"), home.losses("alone"), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_processes_set_the_same_broken_step_aside(home):
    """A file that only one of them reads is broken; a part of what both have is verified over both."""
    shutil.copytree(home.latents_of_one(), home.folder / "broken" / "data")
    assert main(home.train("broken", 2, *WITHIN)) == 0
    straight = home.losses("broken")
    step = home.folder / "broken/model/checkpoints/2"
    file = max(step.rglob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (code, first), (other_code, other) = processes.run(home.train("broken", 2, *WITHIN))
    assert (code, other_code) == (0, 0), first + other
    assert "2: is broken, " in first and "set aside as 2.broken, step 1 is taken" in first
    assert "step 1 of 2" in first and "broken" not in other
    np.testing.assert_allclose(home.losses("broken"), straight, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_prepare_train_restore_sample_and_evaluate_as_one_does(home):
    def way(run):
        return [
            home.latents(run),
            home.train(run, 2, *WITHIN),
            home.train(run, 3, *ACROSS),
            home.sample(run),
            home.evaluate(run),
        ]

    (code, first), (other_code, other) = processes.run(*way("two"))
    assert (code, other_code) == (0, 0), first + other
    assert "step 2 of 3" in first and "loss" not in other
    for verb in way("one"):
        assert main(verb) == 0
    made = [Records(home.folder / run / "data", "latents") for run in ("one", "two")]
    assert made[0].manifest == made[1].manifest
    assert all(np.array_equal(*(records.read("train", n) for records in made)) for n in range(3))
    np.testing.assert_allclose(home.losses("two"), home.losses("one"), rtol=1e-5)
    assert len(home.losses("two")) == 3
    reports = [home.report(run) for run in ("one", "two")]
    assert reports[0].keys() == reports[1].keys()
    np.testing.assert_allclose(reports[1]["loss"], reports[0]["loss"], rtol=1e-5)
    for name, other_name in (("000.mp4", "001.mp4"), ("001.mp4", "000.mp4")):
        one, two, another = (
            read_clip(probe(home.folder / video), (32, 32), fps=16.0, frames=5).astype(int)
            for video in (f"one/videos/{name}", f"two/videos/{name}", f"one/videos/{other_name}")
        )
        # Rounding (1 level) before a lossy codec can change how it codes a block, so no pixel has a bound.
        difference, of_others = np.abs(one - two).mean(), np.abs(one - another).mean()
        assert difference <= 1 and of_others > 5
