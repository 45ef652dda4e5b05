"""Converted weights trained on, in full and with adapters, on a folder of real clips, through the command line."""

import json

import pytest
from PIL import Image
from tiny import change
from wan_published import write_published

from sora_jax.checkpoint.meta import load_meta
from sora_jax.cli.main import main
from sora_jax.config.load import from_dict
from sora_jax.config.schema import Settings
from sora_jax.data.loader.stream import train_sequences
from sora_jax.data.media.video import probe
from sora_jax.data.tokenizer import train_tokenizer

pytestmark = pytest.mark.slow
DATA = (
    "--config.data.sizes=('48',)",
    "--config.data.frames=(9, 1)",
    "--config.data.fps=8.0",
    "--config.data.validation=0.2",
)
TRAIN = (
    "--config.data.sequence_length=48",
    "--config.data.text_length=1024",
    "--config.data.clips_per_sequence=2",
    "--config.optimizer.warmup_steps=1",
    "--config.train.log_every=1",
    "--config.train.save_every=2",
)


class Home:
    """A converted model, and latents of real clips that it has encoded."""

    def __init__(self, folder, clips, case="t2v"):
        self.folder, self.base, self.clips = folder, folder / "base", clips
        write_published(folder / "published", "bfloat16", case=case)
        self.verb("convert", f"--from={folder}/published", f"--to={self.base}")
        self.prepare("latents", f"--tokenizer={self.base}/tokenizer.model")

    def verb(self, name, *flags):
        assert main([name, *flags]) == 0

    def prepare(self, name, *flags):
        config = f"--config={self.base}/settings.json"
        given = (f"--videos={self.clips}", f"--autoencoder={self.base}", f"--out={self.folder}/{name}")
        self.verb("prepare", config, *DATA, *given, *flags)

    def flags(self, name, steps, data="latents"):
        return [
            f"--config={self.base}/settings.json",
            f"--config.train.init_from={self.base}",
            f"--config.data.path={self.folder}/{data}",
            f"--config.train.steps={steps}",
            f"--workdir={self.folder}/{name}",
            *TRAIN,
        ]

    def train(self, name, steps, *flags):
        """Losses of the run `name`, trained up to so many steps."""
        self.verb("train", *self.flags(name, steps), *flags)
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def home(clips, tmp_path_factory):
    return Home(tmp_path_factory.mktemp("finetune"), clips)


@pytest.mark.parametrize(
    "name, flags",
    [pytest.param("full", [], marks=pytest.mark.exhaustive), ("adapters", ["--config.lora.rank=4"])],
)
def test_imported_weights_are_trained_on_sampled_and_written_out(home, name, flags):
    assert len(home.train(name, 2, *flags)) == 2
    resumed = home.train(name, 4, *flags)
    assert resumed == home.train(f"{name}-straight", 4, *flags)
    states = [load_meta(home.folder / run / "checkpoints", 4).leaves for run in (name, f"{name}-straight")]
    assert states[0] == states[1]  # params, average and optimizer, to the last bit
    out, checkpoint = home.folder / f"{name}.mp4", f"--checkpoint={home.folder}/{name}"
    home.verb("sample", checkpoint, "--prompt=a bird", "--size=32x32", "--frames=5", "--steps=2", f"--out={out}")
    assert probe(out).frames == 5
    home.verb("convert", f"--from={home.folder}/{name}", f"--to={home.folder}/{name}-published")
    assert (home.folder / f"{name}-published" / "model_index.json").exists()


@pytest.mark.exhaustive
def test_image_to_video_learns_from_what_prepare_has_given(clips, tmp_path):
    home = Home(tmp_path, clips, "flf2v")
    batch = first_row(home)
    assert batch.condition[batch.segment_ids > 0].any() and batch.image[batch.image_segment_ids > 0].any()
    losses = home.train("full", 2)
    adapted = home.train("adapters", 1, "--config.mesh.ulysses=2", "--config.lora.rank=4")
    assert adapted[0] == pytest.approx(losses[0], rel=1e-2)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    pictures = [f"--{flag}={tmp_path}/red.png" for flag in ("image", "last-image")]
    size = ("--size=32x32", "--frames=5", "--steps=2", f"--out={tmp_path}/out.mp4")
    home.verb("sample", f"--checkpoint={tmp_path}/full", "--prompt=a bird", *pictures, *size)
    assert probe(tmp_path / "out.mp4").frames == 5


def first_row(home):
    config = json.loads((home.base / "settings.json").read_text())
    data = {
        "path": f"{home.folder}/latents",
        "sequence_length": 48,
        "text_length": 1024,
        "clips_per_sequence": 2,
        "batch": 1,
    }
    return train_sequences(change(from_dict(Settings, config, "settings"), data=data)).batch_at(0)


def test_adapters_begin_at_the_imported_weights(home):
    full = home.train("first-full", 1)
    adapted = home.train("first-adapted", 1, "--config.lora.rank=4")
    assert adapted[0] == pytest.approx(full[0], rel=1e-2)


def test_a_converted_model_is_not_taken_for_a_run(home, capsys):
    assert main(["train", *home.flags("base", 1)]) == 2
    told = capsys.readouterr().err
    assert "holds a model and no run" in told and "--config.train.init_from=" in told


def test_data_with_another_tokenizer_are_refused(home, capsys):
    other = home.folder / "other.model"
    train_tokenizer(["a cat", "a dog"], other, vocabulary=300)
    home.prepare("own", f"--tokenizer={other}")
    assert main(["train", *home.flags("other", 1, data="own")]) == 2
    assert "its tokenizer.model is not that of" in capsys.readouterr().err
