"""The loss on held-out clips during training."""

import io
import json

import jax
import numpy as np
import pytest
import rich.console
import tiny
from tiny_run import write_data

from sora_jax.core.mesh import make_mesh
from sora_jax.train.loop import train
from sora_jax.train.monitoring.held_out_loss import BATCHES, HeldOutLoss
from sora_jax.train.objectives.flow import FlowObjective


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    write_data(folder / "data", "latents", tiny.SETTINGS.autoencoder)
    return tiny.change(
        tiny.SETTINGS,
        data={"path": str(folder / "data"), "batch": 2},
        mesh={"data": 2, "fsdp": 1, "ulysses": 4},
        text={"vocabulary": 400},
        train={"steps": 3, "save_every": 3, "log_every": 10, "eval_every": 2},
    )


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_training_logs_the_held_out_loss_and_learns_the_same(settings, tmp_path):
    console = rich.console.Console(file=io.StringIO(), width=200)
    measured = train(settings, tmp_path / "measured", console=console)
    plain = train(tiny.change(settings, train={"eval_every": 0}), tmp_path / "plain", console=console)
    found = lines(tmp_path / "measured")
    assert [(line["step"], "held_out_loss" in line) for line in found] == [(2, True), (3, False)]
    assert "held-out loss" in console.file.getvalue()
    assert [line["step"] for line in lines(tmp_path / "plain")] == [3]
    for one, other in zip(jax.tree.leaves(measured), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_held_out_loss_is_that_of_held_out_clips_in_any_micro_batches(settings):
    """Always the same noise; equal for the weights of the same values; nothing where no clips are held out."""
    mesh = make_mesh(settings.mesh)
    with jax.set_mesh(mesh):
        objective = FlowObjective(settings)
        params = jax.jit(objective.init)(jax.random.key(0))
        whole = HeldOutLoss(settings, objective, mesh)
        first = whole.measure(params, {})
        assert first == whole.measure(params, {}) and len(whole._batches) <= BATCHES
        # A fresh model predicts no velocity, whose square is 2 for latents and noise of variance 1.
        assert first == pytest.approx(2, rel=0.2)
    halves = tiny.change(settings, data={"batch": 4}, train={"accumulate": 2})
    with jax.set_mesh(mesh):
        one = HeldOutLoss(tiny.change(halves, train={"accumulate": 1}), FlowObjective(halves), mesh)
        two = HeldOutLoss(halves, FlowObjective(halves), mesh)
        assert two.measure(params, {}) == pytest.approx(one.measure(params, {}), rel=1e-5)
    assert two.due(4) and not two.due(3)
