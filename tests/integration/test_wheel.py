"""A built wheel holds all that sampling needs: no checkout, no other files."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
MOST_MEGABYTES = 60


def run(*command, cwd, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_wheel_samples_outside_of_the_repository(tmp_path):
    source = tmp_path / "source"  # setuptools writes beside what it builds
    shutil.copytree(ROOT / "sora_jax", source / "sora_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source)
    run(sys.executable, "-m", "pip", *build, cwd=tmp_path)
    (wheel,) = tmp_path.glob("sora_jax-*.whl")
    assert wheel.stat().st_size < MOST_MEGABYTES * 1e6

    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    # The libraries that it needs are those of this environment; sora_jax itself comes from the wheel.
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run(sys.executable, "-m", "pip", "--python", home, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)

    python = home / "bin/python"
    where = run(python, "-c", "import sora_jax; print(sora_jax.__file__)", cwd=tmp_path)
    assert where.startswith(str(home))
    flags = ("--prompt=a red circle", "--frames=1", "--steps=1", "--out=red.mp4")
    run(home / "bin/sora-jax", "sample", *flags, cwd=tmp_path, JAX_PLATFORMS="cpu")
    read = "from sora_jax.generate.output.writer import read_metadata; print(read_metadata('red.mp4')['prompt'])"
    assert run(python, "-c", read, cwd=tmp_path) == "a red circle\n"
