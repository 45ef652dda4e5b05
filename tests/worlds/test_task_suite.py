"""The suite `tasks`: on videos whose truth is known, and whole on a transformer that was never trained."""

import json

import numpy as np
import pytest
from test_tasks import write_run

from sora_jax.cli.main import main
from sora_jax.generate.request import TaskInputs
from sora_jax.worlds.shapes.detector import read_paths
from sora_jax.worlds.shapes.prompt_suite import SEED
from sora_jax.worlds.shapes.renderer import render, sample_scene
from sora_jax.worlds.shapes.task_suite import STRENGTHS, Trial, measure_trial

FRAMES = 17


def moving(frames, index=0):
    """A held-out scene with one thing that moves, and its caption without more than its colour."""
    found = (sample_scene(SEED, n, held_out=True, things=1) for n in range(100))
    scene = [scene for scene in found if scene.things[0].motion in ("left", "right")][index]
    thing = scene.things[0]
    words = f"a {thing.size} {thing.colour} {thing.shape} moves {thing.motion} on a {scene.background} background"
    return render(scene, frames=frames, size=(64, 64)), words


def trial_of(video, words, joins):
    return Trial("extend", words, TaskInputs(), [video[:FRAMES]], range(FRAMES), joins=joins)


def test_joins_of_the_truth_do_not_show():
    video, words = moving(27)
    found = measure_trial(trial_of(video, words, (FRAMES,)), video, video[:FRAMES], 16.0)
    assert found["given"] == found["reconstruction"] == 100.0
    assert 0.7 < found["join"] < 1.4 and 0.9 < found["jump"] < 1.1
    assert found["found"] and all(found["found"].values())


def test_a_join_shows_where_things_jump_or_what_was_given_does_not_come_back():
    video, words = moving(27)
    jumped = np.concatenate([video[:FRAMES], video[:10]])
    found = measure_trial(trial_of(video, words, (FRAMES,)), jumped, video[:FRAMES], 16.0)
    assert found["join"] > 2 and found["jump"] > 5 and found["given"] == 100.0
    darker = video // 2
    assert measure_trial(trial_of(video, words, (FRAMES,)), darker, darker[:FRAMES], 16.0)["given"] < 20


def test_a_loop_is_joined_where_it_begins_again():
    video, words = moving(27)
    there_and_back = np.concatenate([video[:10], video[10:0:-1]])
    (once, closed) = (
        measure_trial(Trial("loop", words, TaskInputs(), joins=(0,)), v, None, 16.0)
        for v in (video, there_and_back)
    )
    assert once["jump"] > 5 and closed["jump"] == pytest.approx(1.0, abs=0.2) and closed["given"] is None


def test_paths_are_those_of_the_centres():
    video, _ = moving(9)
    _, (path,) = read_paths(video)
    steps = np.diff(path, axis=0)
    assert path.shape == (9, 2) and np.abs(steps[:, 1]).max() < 0.2 < np.abs(steps[:, 0]).min()


@pytest.mark.slow
def test_every_task_is_measured(tmp_path, capsys):
    write_run(tmp_path / "run")
    argv = ["evaluate", f"--checkpoint={tmp_path}/run", "--suite=tasks", "--samples=1", f"--out={tmp_path}/report"]
    assert main(argv) == 0
    (values,) = json.loads((tmp_path / "report/evaluation.json").read_text())["checkpoints"]
    found = values["tasks"]["by_task"]
    assert {f"edit at {s:g}" for s in STRENGTHS} < set(found) and len(found) == 10 + len(STRENGTHS)
    for task, of in found.items():
        held = not task.startswith("edit") or task == "edit at 0"
        if of["given"] is not None:
            # What was given comes back as the autoencoder shows it; an edit does not hold it.
            assert (of["given"] > of["reconstruction"] - 0.5) == held, (task, of)
    assert list((tmp_path / "report").glob("step-*/tasks-*.png")) and "outpaint" in capsys.readouterr().err
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "report").rglob("made.mp4")}
    next((tmp_path / "report").glob("step-*/tasks-*.json")).unlink()
    assert main(argv) == 0  # goes on: all videos are there
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "report").rglob("made.mp4")}
