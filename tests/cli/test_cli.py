"""The command line: help, and errors of input in one line, before anything is written."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import sora_jax
from sora_jax.cli import help as cli_help
from sora_jax.cli.commands import COMMANDS
from sora_jax.cli.main import main
from sora_jax.config.files import read_config
from sora_jax.config.load import to_config
from sora_jax.config.schema import Settings

ROOT = pathlib.Path(__file__).parent.parent.parent
SCREEN = 50  # lines
PROGRAM = pathlib.Path(sys.executable).with_name("sora-jax")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder, so that files written by mistake are found."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_line(capsys, *argv: str) -> str:
    """The one line of an error."""
    assert main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"sora-jax {argv[0]}"), err
    return err


def files_in(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(capsys, argv):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert err == "" and all(f"  {name} " in out and command.summary in out for name, command in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_fits_two_screens_and_names_the_flags_that_most_people_need(capsys, name):
    command = COMMANDS[name]
    assert main([*name.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") <= 2 * SCREEN
    shown = [flag for flag in command.all_flags if f"  --{flag.name} " in out or f"  --{flag.name}\n" in out]
    assert shown == [flag for flag in command.all_flags if not flag.advanced]
    assert set(re.findall(r"--config\.([\w.]+)=", out.partition("\nKeys ")[2])) == set(command.keys)
    assert all(f"sora-jax {name} {example}".rstrip() in out for example in command.examples) and command.examples


def test_the_overview_fits_a_screen_and_a_first_word_shows_its_commands(capsys):
    assert main([]) == 0 and capsys.readouterr().out.count("\n") <= SCREEN
    for argv in (["checkpoint"], ["checkpoint", "--help"], ["help", "checkpoint"]):
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert "checkpoint prune" in out and "sample" not in out
    assert main(["help", "checkpoint", "prune"]) == 0
    assert capsys.readouterr().out.startswith("usage: sora-jax checkpoint prune ")


@pytest.mark.parametrize("name", COMMANDS)
def test_all_help_of_a_command_names_its_flags_and_every_key_of_the_config(capsys, here, name):
    assert main([*name.split(), "--help-all", "--nonsense"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(f"usage: sora-jax {name} ") and COMMANDS[name].summary in out
    keys = [f"--config.{group}.{key}=" for group, keys in groups() for key in keys]
    assert all((key in out) == COMMANDS[name].config for key in keys)
    for flag in COMMANDS[name].all_flags:
        assert f"  --{flag.name}" in out and flag.meaning.endswith((".", ")"))
    assert not list(here.iterdir())


def test_the_reference_pages_of_the_commands_are_current():
    for name, text in cli_help.pages().items():
        assert (ROOT / "docs/reference" / name).read_text() == text


def groups():
    return [(name, keys) for name, keys in to_config(Settings()).to_dict().items() if isinstance(keys, dict)]


def test_help_may_be_cut_off_by_its_reader():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [PROGRAM, "train", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writer)
    assert done.stderr == "" and done.returncode == 0


def test_the_installed_program_reports_an_error_and_exits_with_2(here):
    done = subprocess.run([PROGRAM, "trian"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "did you mean 'train'?" in done.stderr
    assert not list(here.iterdir())


# Mistyped input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, words",
    [
        ("trian", "no such command, did you mean 'train'?"),
        (
            "xyz",
            "no such command, known: caption, checkpoint inspect, checkpoint prune, checkpoint release, checkpo",
        ),
        ("checkpoint verfy", "no such command, did you mean 'checkpoint verify'?"),
        ("checkpoint prune --workdir=run --keep=0", "flag --keep=0"),
        ("checkpoint verify", "--workdir is missing"),
        ("train --workdir=run --config.optimizer.spike=0.5", "config.optimizer.spike: 0.5 must be above 1"),
        ("train --workdri=run", "--workdri: no such flag, did you mean '--workdir'?"),
        ("sample --promt=cat", "--promt: no such flag, did you mean '--prompt'?"),
        ("sample --negativ_promt=a", "--negativ-promt: no such flag, did you mean '--negative-prompt'?"),
        ("sample --xyzzy=1", "--xyzzy: no such flag, `--help-all` lists them"),
        ("evaluate --config.train.steps=3", "--config.train.steps: no such flag"),
        ("train run", "'run': flags begin with --"),
        ("train", "--workdir is missing"),
        ("prepare --out=data", "--videos is missing"),
        ("sample --checkpoint=run --out=a.mp4", "--prompt is missing"),
        ("sample --prompt", "Missing value for flag --prompt"),
        ("sample --steps=many", "--steps=many"),
        ("sample --frames=2.5", "--frames=2.5"),
        ("train --config.trian.steps=3", "--config.trian: no such key, did you mean 'train'?"),
        ("train --config.train.step=3", "--config.train.step: no such key, did you mean 'steps'?"),
        ("train --config.train.steps.now=3", "--config.train.steps.now: no such key"),
        ("train --config.train=3", "--config.train: a group; its keys are accumulate, bad_steps, eval_every"),
        ("train --workdir=run --config.train.steps=abc", "--config.train.steps=abc"),
        ("train --workdir=run --config.train.steps=0", "config.train.steps: 0 must be at least 1"),
        ("train --workdir=run --config.optimizer.learning_rate=nan", "config.optimizer.learning_rate: nan"),
        ("train --workdir=run --config.data.validation=2", "config.data.validation: 2.0 must be from 0 to 1"),
        (
            "train --workdir=run --config.text.dtype=flaot32",
            "config.text.dtype: 'flaot32'? did you mean 'float32'?",
        ),
        ("train --workdir=run --config.objective=flwo", "config.objective: 'flwo'? did you mean 'flow'?"),
        ("train --workdir=run --config.transformer.width=100", "config.transformer.heads: must divide the width"),
        (
            "train --workdir=run --config.transformer.channels=3",
            "config.transformer.channels: must be config.auto",
        ),
        ("train --workdir=run --config.mesh.data=7", "config.mesh: data 7 x fsdp 1"),
        ("train --workdir=run --config.data.batch=3", "config.data.batch: 3 must be a multiple of"),
        (
            "sample --checkpoint=. --prompt=cat --out=a.mp4 --mesh=dat=2",
            "--mesh: no axis 'dat', did you mean 'data'?",
        ),
        ("sample --checkpoint=. --prompt=cat --out=a.mp4 --mesh=data=x", "--mesh: 'data=x' is not AXIS=SIZE"),
    ],
)
def test_a_mistyped_command_is_reported_with_a_correction(capsys, here, command, words):
    assert words in error_line(capsys, *command.split())
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "settings.json: no JSON"),
        ("[1]", "settings.json: an object is needed, not list"),
        ('{"train": {"step": 3}}', "settings.json.train.step: no such key, did you mean 'steps'?"),
        ('{"transformer": {"image_width": 8}}', "image_width: 8, but it must be 0 or 1280, config.image.width"),
        ('{"transformer": {"image_width": 1280}}', "image_width and config.image.weights: set both or neither"),
        ('{"transformer": {"condition_channels": 7}}', "condition_channels: 7, but it must be 0 or 20"),
        ('{"transformer": {"image_positions": 514}}', "image_positions: needs image_width, which is 0"),
        ('{"lora": {"rank": 4}}', "config.lora.rank: needs config.train.init_from"),
        ('{"lora": {"targets": "("}}', "config.lora.targets: '(' is no regular expression"),
        ('{"flow": {"time_min": 0.9, "time_max": 0.5}}', "config.flow.time_min: must be below"),
    ],
)
def test_impossible_settings_are_reported(capsys, here, text, words):
    (here / "settings.json").write_text(text)
    assert words in error_line(capsys, "train", "--config=settings.json", "--workdir=run")
    assert [path.name for path in here.iterdir()] == ["settings.json"]


def test_the_nearest_name_of_a_config_file_is_suggested(capsys, here):
    (here / "configs").mkdir()
    (here / "configs/clips.py").write_text("")
    for flag in (["--config=configs/clip.py"], ["--config", "configs/clip.py"]):
        assert "no file configs/clip.py, did you mean 'configs/clips.py'?" in error_line(capsys, "train", *flag)
    assert "name a file" in error_line(capsys, "train", "--config=")


START = "from sora_jax.config.load import default_config\n\ndef get_config():\n    config = default_config()\n"


@pytest.mark.parametrize(
    "program, words",
    [
        (START + "    config.train.stpes = 3\n", 'mine.py:5: AttributeError: Key "stpes" does not exist'),
        (START + "    config.train.update(stpes=3)\n", "mine.py:5: "),
        (START + "    config.train.steps = 'ten'\n", "mine.py:5: TypeError: "),
        (START + "    config.train.steps = (\n", "mine.py:5: '(' was never closed"),
        ("import no_such_module\n", "mine.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config():\n    return 3\n", "mine.py: get_config(), which returns a ConfigDict, is needed"),
        ("settings = 3\n", "mine.py: get_config(), which returns a ConfigDict, is needed"),
        (START + "    config.train.steps = -1\n    return config\n", "config.train.steps: -1 must be at least 1"),
    ],
)
def test_an_error_in_a_config_file_is_reported_with_its_line(capsys, here, program, words):
    (here / "mine.py").write_text(program)
    line = error_line(capsys, "train", "--config=mine.py", "--workdir=run")
    assert words in line
    if "stpes" in program:
        assert 'Did you mean "steps"' in line
    assert [path.name for path in here.iterdir()] == ["mine.py"]


def test_a_config_file_may_take_an_argument_and_read_its_siblings(capsys, here):
    (here / "base.py").write_text(START + "    config.train.steps = 7\n    return config\n")
    (here / "mine.py").write_text(
        "import pathlib, runpy\n\nbase = runpy.run_path(pathlib.Path(__file__).with_name('base.py'))\n\n"
        "def get_config(objective='flow'):\n    config = base['get_config']()\n"
        "    config.objective = objective\n    return config\n"
    )
    assert "config.objective: 'flwo'?" in error_line(capsys, "train", "--config=mine.py:flwo", "--workdir=run")
    assert "config.data.path: name the folder" in error_line(capsys, "train", "--config=mine.py", "--workdir=run")


# Missing and empty data ------------------------------------------------------------------------------------------


def test_absent_videos_are_reported(capsys, here):
    (here / "videos").mkdir()
    assert "no such folder, did you mean 'videos'?" in error_line(
        capsys, "prepare", "--videos=video", "--out=data"
    )
    assert "videos: no video" in error_line(capsys, "prepare", "--videos=videos", "--out=data")
    assert [path.name for path in here.iterdir()] == ["videos"]


@pytest.mark.parametrize("objective", ["flow", "autoencoder"])
def test_absent_data_are_reported(capsys, here, objective):
    (here / "latents").mkdir()
    flags = [f"--config.objective={objective}", "--workdir=run"]
    assert "did you mean 'latents'?" in error_line(capsys, "train", "--config.data.path=latent", *flags)
    assert "latents is no finished data set" in error_line(capsys, "train", "--config.data.path=latents", *flags)
    assert [path.name for path in here.iterdir()] == ["latents"]


def test_an_absent_checkpoint_is_reported(capsys, here):
    (here / "runs/first").mkdir(parents=True)
    asked = ["--prompt=a cat", "--out=cat.mp4"]
    for name, flags in (("sample", asked), ("evaluate", [])):
        assert "did you mean 'first'?" in error_line(capsys, name, "--checkpoint=runs/frist", *flags)
        assert "runs/first: no checkpoint in it" in error_line(capsys, name, "--checkpoint=runs/first", *flags)
    assert files_in(here) == {}


def test_the_version_is_the_package_s_own(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sora_jax {sora_jax.__version__}\n"


def test_a_config_in_a_folder_with_a_colon_takes_an_argument(tmp_path):
    folder = tmp_path / "with:colon.py:"
    folder.mkdir()
    file = folder / "x.py"
    file.write_text(
        "from sora_jax.config.load import default_config\n"
        "def get_config(steps='1'):\n    config = default_config()\n    config.train.steps = int(steps)\n"
        "    return config\n"
    )
    assert read_config(f"{file}:7").train.steps == 7
    assert read_config(str(file)).train.steps == 1
