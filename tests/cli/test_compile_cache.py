"""The compilation cache: what one process compiled, the next one loads."""

import os
import pathlib
import subprocess
import sys

import pytest

from sora_jax.cli import compile_cache

PROGRAM = """
import logging, sys
from sora_jax.cli.compile_cache import use_compile_cache
use_compile_cache()
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
print(jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).sum(), "/jax/compilation_cache/cache_hits" in events)
"""


def run(folder) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "SORA_JAX"))}
    environment |= {"SORA_JAX_CACHE": str(folder), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout.split()


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    (first, hit), (second, again) = run(tmp_path), run(tmp_path)
    assert (hit, again) == ("False", "True")
    assert first == second
    assert [folder.name for folder in tmp_path.iterdir()] == [compile_cache.machine()]


@pytest.fixture
def settings(monkeypatch):
    """The environment of a process that has not imported JAX."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "SORA_JAX_CACHE"))}
    monkeypatch.setattr(os, "environ", kept)
    monkeypatch.delitem(sys.modules, "jax")
    return kept


def test_the_cache_lies_in_the_folder_of_the_platform_and_is_bounded(settings):
    settings["XDG_CACHE_HOME"] = "/somewhere"
    compile_cache.use_compile_cache()
    assert pathlib.Path(settings["JAX_COMPILATION_CACHE_DIR"]).name == compile_cache.machine()
    assert int(settings["JAX_COMPILATION_CACHE_MAX_SIZE"]) == compile_cache.MAX_BYTES


def test_a_bucket_is_taken_as_it_is(settings):
    settings["SORA_JAX_CACHE"] = "gs://bucket/compiled/"
    compile_cache.use_compile_cache()
    assert settings["JAX_COMPILATION_CACHE_DIR"] == f"gs://bucket/compiled/{compile_cache.machine()}"
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in settings


@pytest.mark.parametrize("name, value", [("SORA_JAX_CACHE", "none"), ("JAX_COMPILATION_CACHE_DIR", "/mine")])
def test_it_is_off_when_it_is_turned_off_or_jax_has_a_cache_of_its_own(settings, name, value):
    settings[name] = value
    before = dict(settings)
    compile_cache.use_compile_cache()
    assert settings == before
