"""Evaluation of a run's steps: chosen ones, and each as it becomes complete."""

import io
import json
import os
import threading
import time

import jax.numpy as jnp
import pytest
import rich.console
import tiny
from tensorboardX.proto.event_pb2 import Event
from test_evaluate import Model, another, asked, checkpoint

from sora_jax.checkpoint.kept_steps import keep_steps, read_kept_steps
from sora_jax.checkpoint.manager import Checkpoints
from sora_jax.checkpoint.tools import prune
from sora_jax.checkpoint.workdir import steps_in
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.evaluate.benchmark import Options
from sora_jax.evaluate.evaluate import evaluate
from sora_jax.evaluate.subjects import open_subjects
from sora_jax.evaluate.suites.registry import BENCHMARKS
from sora_jax.evaluate.verdict.decisions import Wanted
from sora_jax.evaluate.watch import BEST, run_has_ended, watch
from sora_jax.train.state import TrainState
from sora_jax.train.workdir_lock import describe_process
from sora_jax.worlds.shapes.benchmarks import BENCHMARKS as SHAPES_BENCHMARKS


class Learner:
    """A sampler whose videos obey more prompts with each step, and that lists the steps it was asked for."""

    def __init__(self):
        self.step, self.made = 0, []

    def __call__(self, prompts, cell, first):
        self.made.append(self.step)
        scene = asked if self.step >= 2 else another
        return Model(scene)(prompts, cell, first)


def report(out, learner):
    def measure(subjects):
        learner.step = subjects[-1].step
        return evaluate(
            subjects,
            out,
            benchmarks=BENCHMARKS | SHAPES_BENCHMARKS,
            suite=["shapes"],
            options=Options(samples=2, sampler=learner),
            mesh=MeshSettings(2, ulysses=4),
            console=rich.console.Console(file=io.StringIO()),
            wanted=Wanted(best="shapes.all", judge=False),
        )

    return measure


def end_run(workdir):
    (workdir / "run_history.json").write_text(json.dumps([{"step": 0, "began": 0.0, "ended": 1.0, "last": 3}]))


def test_each_checkpoint_is_measured_until_the_run_ends(tmp_path):
    """A run that saves while it is watched; the first steps are pruned meanwhile, and their numbers stay."""
    run, out, learner, console = tmp_path / "run", tmp_path / "out", Learner(), rich.console.Console(quiet=True)
    (tmp_path / "run").mkdir()

    def train():
        for step in (1, 2, 3):
            checkpoint(run, step=step)
            while step not in learner.made:
                time.sleep(0.05)
        end_run(run)

    thread = threading.Thread(target=train)
    thread.start()
    summary = watch(run, out, report(out, learner), every=1, keep_best=True, console=console, poll=0.05)
    thread.join()
    assert [one["name"] for one in summary["checkpoints"]] == ["run at 1", "run at 2", "run at 3"]
    shares = [one["numbers"]["shapes.all_together"]["value"] for one in summary["checkpoints"]]
    assert shares == [0, 1, 1] and summary["best"] == {"measure": "shapes.all_together", "subject": "run at 2"}
    assert (out / "course.png").exists() and "run at 3" in (out / "index.html").read_text()
    assert read_kept_steps(run) == {"evaluate: being measured": [], BEST: [2]}
    # Begun again, it measures nothing anew: not even the step that has been pruned.
    prune(run, 1, 0, dry_run=False, console=console)
    assert steps_in(run / "checkpoints") == [2, 3]
    made = list(learner.made)
    again = watch(run, out, report(out, learner), every=1, keep_best=True, console=console, poll=0.05)
    assert learner.made == made and len(again["checkpoints"]) == 3
    written = [
        event
        for path in (run / "tensorboard/evaluate").iterdir()
        for event in read_events(path.read_bytes())
        if event.step
    ]
    assert sorted(event.step for event in written) == [1, 2, 3]
    assert "evaluate/shapes.all_together" in {value.tag for event in written for value in event.summary.value}


def read_events(data: bytes):
    """Events of a TensorBoard file: length, its checksum, event, checksum."""
    while data:
        size = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def test_steps_that_are_overtaken_are_skipped(tmp_path):
    run, out, learner = tmp_path / "run", tmp_path / "out", Learner()
    for step in (1, 2, 3):
        checkpoint(run, step=step)
        (run / "checkpoints" / str(step)).rename(tmp_path / str(step))
    for step in (1, 2, 3):
        (tmp_path / str(step)).rename(run / "checkpoints" / str(step))
    assert not run_has_ended(run)
    end_run(run)
    (run / "run.lock").write_text("")  # a new start of the run
    assert not run_has_ended(run)
    (run / "run.lock").unlink()
    # A start that is killed leaves its lock, and nobody touches it.
    (run / "run_history.json").write_text(json.dumps([{"step": 0, "began": 0.0, "last": 3}]))
    lock = run / "run.lock"
    lock.write_text(json.dumps(describe_process() | {"pid": 2**22 + 1}))
    assert not run_has_ended(run)  # a supervisor may still start it again
    os.utime(lock, (0, time.time() - 200))
    assert run_has_ended(run)
    lock.write_text(json.dumps(describe_process()))
    os.utime(lock, (0, time.time() - 200))
    assert not run_has_ended(run)  # suspended
    lock.unlink()
    end_run(run)
    console = rich.console.Console(quiet=True)
    summary = watch(run, out, report(out, learner), every=2, keep_best=False, console=console, poll=0.05)
    assert [one["step"] for one in summary["checkpoints"]] == [2]
    subjects = open_subjects([str(run)], [], "all", out)
    assert [subject.name for subject in subjects] == ["run at 1", "run at 2", "run at 3"]


def test_a_step_that_is_asked_for_is_not_pruned(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(TrainState(jnp.asarray(step), {}, {"x": jnp.ones(2)}, ()), tiny.SETTINGS, "")
            if step == 2:
                keep_steps(tmp_path, "somebody", [2])
    assert steps_in(tmp_path / "checkpoints") == [2, 4]
    prune(tmp_path, 1, 0, dry_run=False, console=rich.console.Console(quiet=True))
    assert steps_in(tmp_path / "checkpoints") == [2, 4]
    keep_steps(tmp_path, "somebody", [])
    prune(tmp_path, 1, 0, dry_run=False, console=rich.console.Console(quiet=True))
    assert steps_in(tmp_path / "checkpoints") == [4]


def test_nothing_is_pruned_while_it_is_unknown_which_steps_are_asked_for(tmp_path):
    (tmp_path / "kept_steps.json").write_text("{")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(TrainState(jnp.asarray(step), {}, {"x": jnp.ones(2)}, ()), tiny.SETTINGS, "")
    assert steps_in(tmp_path / "checkpoints") == [1, 2]
    with pytest.raises(InputError, match=r"kept_steps\.json"):
        prune(tmp_path, 1, 0, dry_run=False, console=rich.console.Console(quiet=True))


def test_a_run_without_checkpoints_is_an_error(tmp_path):
    (tmp_path / "run").mkdir()
    end_run(tmp_path / "run")
    with pytest.raises(InputError, match="there is no checkpoint in it"):
        watch(
            tmp_path / "run",
            tmp_path / "out",
            lambda subjects: {},
            every=1,
            keep_best=False,
            console=rich.console.Console(quiet=True),
        )
