"""`doctor` in processes of its own, on installations that are in order and that are not."""

import os
import subprocess
import sys

import pytest

from sora_jax.cli import doctor


def diagnose(tmp_path, **changed) -> tuple[int, str]:
    """(exit code, output) of `sora-jax doctor` in a clean environment with these variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(doctor.STEERING)}
    environment = kept | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"} | changed
    program = "import sys; from sora_jax.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "doctor"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode in (0, 2), done.stderr
    return done.returncode, done.stdout + done.stderr


def test_an_installation_in_order_shows_versions_devices_and_caches(tmp_path):
    code, text = diagnose(tmp_path, SORA_JAX_CACHE=str(tmp_path / "compiled"))
    assert code == 0 and "Nothing is wrong." in text and "✗" not in text, text
    for words in ("jax  ", "1 x cpu (cpu)", f"at {tmp_path}/compiled/", "model shapes", "H.264", "extra serve"):
        assert words in text


def test_each_problem_stands_with_what_to_type(tmp_path):
    (tmp_path / "file").write_text("")
    code, text = diagnose(tmp_path, JAX_PLATFORMS="nonsense", SORA_JAX_CACHE=str(tmp_path / "file"))
    assert code == 2 and "-> unset JAX_PLATFORMS" in text and "nonsense" in text
    assert f"{tmp_path}/file is no folder" in text and "-> export SORA_JAX_CACHE=FOLDER" in text
    assert "sora-jax doctor: 2 problems" in text.splitlines()[-1]


def test_a_version_out_of_range_and_an_absent_package_are_found(monkeypatch):
    versions = {"flax": "0.1", "av": ""}
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: versions.get(name, real(name)))
    problems = {finding.name: finding for finding in doctor.installed() if finding.problem}
    assert set(problems) == set(versions)
    assert problems["av"].value == "absent" and problems["flax"].remedy.startswith("pip install 'flax")


@pytest.mark.parametrize("extra, package", [("cuda", "jax-cuda13-plugin"), ("parity", "peft")])
def test_an_extra_of_an_extra_is_followed(monkeypatch, extra, package):
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: "" if name == package else real(name))
    assert package in doctor.absent_of_extra("sora_jax", extra)


def test_chips_that_jax_does_not_use_are_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: 8)
    monkeypatch.setitem(os.environ, "JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(doctor, "GIVEN", {})
    gpu = [finding for finding in doctor.devices(60.0) if finding.name == "gpu"]
    assert gpu[0].value == "8 on this machine" and gpu[0].remedy == "pip install 'sora_jax[cuda]'"


def test_chips_that_do_not_answer_are_a_problem():
    (silent,) = doctor.devices(0.001)
    assert silent.problem.startswith("JAX found no devices within 0.001 s")
