"""Training from Python returns what the command prints."""

import json

import pytest
import tiny_run

import sora_jax
from sora_jax.core.errors import InputError


class End(Exception):
    pass


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    (folder / "config.py").write_text(tiny_run.CONFIG)
    tiny_run.write_data(folder / "latents", "latents", tiny_run.SETTINGS.autoencoder)
    return folder


@pytest.mark.slow
def test_a_run_returns_its_metrics_tells_each_and_goes_on_where_it_was_ended(home):
    settings = tiny_run.tiny.change(tiny_run.SETTINGS, data={"path": str(home / "latents")})

    def end(step, values):
        raise End

    with tiny_run.compiled_once(home / "compiled"):
        with pytest.raises(End):
            sora_jax.train(settings, home / "run", on_metrics=end)
        seen = {}
        training = sora_jax.train(settings, home / "run", on_metrics=seen.__setitem__)
    lines = [json.loads(line) for line in (home / "run/metrics.jsonl").read_text().splitlines()]
    assert training.step == 2 and training.metrics == lines and training.metrics[-1]["step"] == 2
    assert seen[2]["loss"] == pytest.approx(lines[-1]["loss"])
    assert training.load().settings == settings.sample


def test_a_config_file_is_read_as_the_command_reads_it(home):
    with pytest.raises(InputError, match=r"config\.data"):
        sora_jax.train(home / "config.py", home / "other")
    with pytest.raises(InputError, match="no file"):
        sora_jax.train(home / "absent.py", home / "other")
