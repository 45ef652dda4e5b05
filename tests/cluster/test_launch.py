"""The launch scripts, run with an interpreter that writes down what it is asked instead of installing."""

import os
import pathlib
import re
import shutil
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = pathlib.Path(__file__).parent.parent.parent

RECORDER = """#!/bin/bash
printf '%s\\n' "$*" >> "$CALLS"
case "$*" in *"pip install"*) exit "${PIP_STATUS:-0}" ;; esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the scripts read, with a recording .venv/bin/python; its folder has a space."""
    folder = tmp_path / "my videos"
    shutil.copytree(ROOT / "launch", folder / "launch")
    for name in ("constraints.txt", "pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, folder)
    for name in ("python", "sora-jax"):
        program(folder / ".venv/bin" / name, RECORDER)
    return folder


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def launch(folder, *command, **environment):
    """Run a script from elsewhere; its result, and what it asked of the interpreter."""
    calls = folder.parent / "calls"
    calls.write_text("")
    done = subprocess.run(
        ["bash", folder / command[0], *command[1:]],
        cwd=folder.parent,
        env={"PATH": os.environ["PATH"], "CALLS": str(calls), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, calls.read_text().splitlines()


def installs(calls):
    return [call for call in calls if "pip install" in call]


def test_the_test_script_installs_the_locked_versions_and_passes_arguments_on(checkout):
    done, calls = launch(checkout, "launch/test.sh", "-k", "floors")
    assert done.returncode == 0, done.stderr
    assert all("--constraint constraints.txt" in call for call in installs(calls))
    assert installs(calls)[-1].endswith("--editable .[test]")
    options = "-n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder"
    assert calls[-1] == f"-m pytest {options} -m not slow and not parity and not exhaustive -k floors"


def test_the_demo_script_installs_and_runs_the_demo(checkout):
    done, calls = launch(checkout, "launch/demo.sh", "--workdir=here")
    assert done.returncode == 0, done.stderr
    assert installs(calls)[-1].endswith("--editable .")
    assert re.fullmatch(r"demo --since=\d{10} --workdir=here", calls[-1])


def test_a_second_run_installs_nothing(checkout):
    launch(checkout, "launch/demo.sh")
    _, calls = launch(checkout, "launch/demo.sh")
    assert installs(calls) == []
    assert calls[-1].startswith("demo --since=")


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml", "setup.cfg"])
def test_a_changed_requirement_is_installed(checkout, name):
    launch(checkout, "launch/demo.sh")
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    _, calls = launch(checkout, "launch/demo.sh")
    assert installs(calls)


def test_a_moved_folder_is_installed_anew(checkout):
    launch(checkout, "launch/demo.sh")
    moved = checkout.rename(checkout.parent / "elsewhere")
    _, calls = launch(moved, "launch/demo.sh")
    assert installs(calls)


def test_a_failed_install_stops_the_script_and_is_tried_again(checkout):
    done, calls = launch(checkout, "launch/demo.sh", PIP_STATUS="1")
    assert done.returncode != 0
    assert "pip could not install" in done.stderr.splitlines()[-1]
    assert "demo" not in calls
    _, calls = launch(checkout, "launch/demo.sh")
    assert installs(calls) and calls[-1].startswith("demo --since=")


def test_an_old_python_is_told_in_one_line(checkout, tmp_path):
    shutil.rmtree(checkout / ".venv")
    for name in ("python", "python3", "python3.11", "python3.12", "python3.13"):
        program(tmp_path / "bin" / name, "#!/bin/bash\nexit 1\n")
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    done, _ = launch(checkout, "launch/demo.sh", PATH=path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "No Python 3.11 or newer was found" in done.stderr


def test_a_named_python_that_does_not_run_is_told_in_one_line(checkout):
    shutil.rmtree(checkout / ".venv")
    done, _ = launch(checkout, "launch/demo.sh", PYTHON="/nowhere/python")
    assert done.returncode == 1
    assert done.stderr == "PYTHON=/nowhere/python: not a Python 3.11 or newer that runs\n"


def test_every_requirement_is_locked_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["test"], *extras["parity"], *extras["ci"]]:
        requirement = Requirement(line)
        if requirement.name == "sora_jax":
            continue  # extras of its own
        version = locked.get(requirement.name.lower().replace("_", "-"))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert version in SpecifierSet(str(requirement.specifier)), f"{line}: locked at {version}"


def test_no_locked_version_needs_cuda():
    names = re.findall(r"^([a-z0-9._-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert [name for name in names if re.search("nvidia|cuda|triton", name)] == []


IMAGES = [ROOT / f"launch/{device}.Dockerfile" for device in ("cpu", "tpu", "cuda")]


@pytest.mark.skipif(not shutil.which("hadolint"), reason="needs hadolint: pip install 'sora_jax[ci]'")
def test_the_linter_finds_nothing_in_the_images():
    done = subprocess.run(["hadolint", *IMAGES], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.stem)
def test_an_image_copies_what_is_there_and_installs_extras_that_exist(file):
    text, sent = file.read_text(), (ROOT / ".dockerignore").read_text().splitlines()
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()]
    assert all((ROOT / name).exists() and f"!{name}" in sent for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"], "setup.cfg", "constraints.txt"} <= set(copied)
    (extras,) = re.findall(r'"\.\[(.+)\]"', text)
    assert set(extras.split(",")) <= set(project["optional-dependencies"]) and "serve" in extras
