"""The emoji suite from prompts to report, and the flags that name a world's model."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
import tiny

from sora_jax.checkpoint.manager import Checkpoints
from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings
from sora_jax.evaluate.benchmark import Options
from sora_jax.evaluate.evaluate import evaluate
from sora_jax.train.state import TrainState
from sora_jax.worlds.emoji.animations import over_colour, unpack
from sora_jax.worlds.emoji.captions import BACKGROUNDS
from sora_jax.worlds.emoji.make import make_data
from sora_jax.worlds.emoji.subjects import all_emoji
from sora_jax.worlds.emoji.suite import BENCHMARKS, make_prompts
from tests.worlds.test_emoji import FILES

needs_files = pytest.mark.skipif(not FILES.is_dir(), reason="SORA_JAX_EMOJI names no folder of WebP files")
SAMPLES = 6
SETTINGS = tiny.change(tiny.SETTINGS, sample={"size": "64x64", "frames": 25, "fps": 8.0, "steps": 2})
QUIET = rich.console.Console(file=io.StringIO(), width=200)


def told(capsys, *argv: str) -> str:
    """The one line of an error."""
    assert main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def animations(tmp_path_factory):
    """A folder with an animation for every emoji, each a link to one of the few files' in turn."""
    few, folder = tmp_path_factory.mktemp("few"), tmp_path_factory.mktemp("animations")
    unpack(FILES, few)
    loops = sorted(few.glob("*.npy"))
    for number, code in enumerate(all_emoji()):
        (folder / f"{code}.npy").symlink_to(loops[number % len(loops)])
    return folder


@pytest.mark.slow
@needs_files
def test_true_clips_score_all_and_clips_of_others_nothing(animations, tmp_path):
    asked = make_prompts(SAMPLES)

    def sampler(prompts, cell, first):
        for number in range(first, first + len(prompts)):
            group, emoji, background = asked[number]
            colour = BACKGROUNDS[background] if group == "held out" else (190, 190, 190)
            loop = over_colour(np.load(animations / f"{emoji.code}.npy"), colour)
            loop = loop if group == "held out" else 255 - loop
            yield np.concatenate([loop, loop[:1]])

    state = TrainState(jnp.asarray(3), {"x": jnp.ones(2)}, {"x": jnp.ones(2)}, ())
    with Checkpoints(tmp_path / "run", keep=1) as checkpoints:
        checkpoints.save(state, SETTINGS, "")
    options = Options(samples=SAMPLES, sampler=sampler, videos=str(animations))
    values = evaluate(
        [tmp_path / "run"],
        tmp_path / "report",
        benchmarks=BENCHMARKS,
        suite=("emoji",),
        options=options,
        mesh=MeshSettings(2, ulysses=4),
        console=QUIET,
    )["checkpoints"][0]["emoji"]["by_group"]
    true, inverted = values["held out"], values["seen"]
    assert all(true[name]["share"] == 1 for name in ("identity", "tone", "background")) and true["motion"] > 0.95
    assert (
        inverted["identity"]["share"] < 0.5 and inverted["background"]["share"] == 0 and inverted["motion"] < 0.5
    )
    page = (tmp_path / "report/index.html").read_text()
    assert "Each sample above the true clip" in page and "held out" in page


def test_the_suite_says_how_to_get_the_true_animations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    err = told(capsys, "evaluate", "--suite=emoji", "--out=report")
    assert "--suite=emoji: data/emoji/animations: no such folder" in err and "`sora-jax data emoji`" in err
    assert not list(tmp_path.iterdir())


def test_a_world_whose_model_is_not_there_says_how_to_train_it(capsys):
    flags = ("sample", "--prompt=a rocket on a blue background", "--out=rocket.mp4")
    assert "docs/guide/emoji.md" in told(capsys, *flags, "--model=emoji")
    assert "name the model by one of them" in told(capsys, *flags, "--model=shapes", "--checkpoint=run")
    assert "no/such/run" in told(capsys, *flags, "--model=no/such/run")


@needs_files
def test_the_data_command_writes_the_sets_that_are_asked_for(tmp_path, capsys):
    files = tmp_path / "files"
    files.mkdir()
    (files / "1f680.webp").symlink_to(FILES / "1f680.webp")
    make_data(tmp_path / "data", ["short", "pictures"], files, QUIET)
    counts = {path.name: len(list(path.iterdir())) - 1 for path in (tmp_path / "data/videos").iterdir()}
    assert counts == {"short": 4, "pictures": 12}
    lines = (tmp_path / "data/videos/pictures/captions.jsonl").read_text().splitlines()
    assert {json.loads(line)["caption"] for line in lines} == {
        f"a rocket on {_an(b)} background" for b in BACKGROUNDS
    }
    assert "did you mean 'short'" in told(capsys, "data", "emoji", f"--files={files}", "--sets=shorts")
    assert "no such folder" in told(capsys, "data", "emoji", f"--files={files}/absent")


def _an(word):
    return f"{'an' if word == 'orange' else 'a'} {word}"
