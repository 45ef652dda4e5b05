"""Requests that are sampled together get what each gets alone; one that fails or ends touches no other."""

import numpy as np
import pytest

from sora_jax.config.schema import MeshSettings
from sora_jax.core.console import Console
from sora_jax.core.errors import InputError
from sora_jax.data.media.video import probe
from sora_jax.generate.output.writer import read_metadata
from sora_jax.generate.request import Request, TaskInputs
from sora_jax.generate.sample import IncompleteError, Job, sample, sample_jobs

QUIET, MESH = Console(quiet=True), MeshSettings()
SMALL = {"steps": 2, "frames": 5}


class End(Exception):
    pass


def job(prompt="a bird", out=None, inputs=None, seed=0, on_progress=lambda done, total: None, **changes):
    request = Request((prompt,), inputs or TaskInputs(), seed, changes=SMALL | changes)
    return Job(request, out, QUIET, on_progress=on_progress)


def run(home, *jobs):
    return sample_jobs(home / "run", jobs, mesh=MESH)


def test_requests_of_several_sizes_and_tasks_are_made_together_as_alone(home, tmp_path):
    jobs = [
        job(),
        job("a rabbit", seed=7, size="64x48", frames=9),
        job(inputs=TaskInputs(image=home / "picture.png")),
        job(inputs=TaskInputs(task="loop")),
        job(inputs=TaskInputs(seconds=0.5), out=tmp_path / "long.mp4"),
    ]
    together = run(home, *jobs)
    for one, [made] in zip(jobs, together, strict=True):
        if one.out:
            assert made.path == one.out and probe(one.out).frames == 8
            continue
        [alone] = run(home, one)[0]
        assert alone.metadata == made.metadata and alone.frames.dtype == np.uint8
        assert np.abs(alone.frames.astype(int) - made.frames).max() <= 1


def test_a_job_that_can_not_be_made_or_is_stopped_leaves_the_others_alone(home, tmp_path):
    seen = []

    def stop(done, total):
        raise End

    jobs = [
        job(on_progress=stop),
        job(size="63x64"),
        job(out=tmp_path / "there.mp4", on_progress=lambda done, total: seen.append((done, total))),
    ]
    stopped, wrong, made = run(home, *jobs)
    assert isinstance(stopped, End) and isinstance(wrong, InputError) and "--size=63x64" in str(wrong)
    assert read_metadata(made[0].path)["prompt"] == "a bird" and seen == [(1, 2), (2, 2)]


def test_a_run_ends_at_once_when_nobody_waits_for_it(home):
    steps = []

    def stop(done, total):
        steps.append(done)
        raise End

    with pytest.raises(End):
        sample(home / "run", job(steps=8).request, None, mesh=MESH, console=QUIET, on_progress=stop)
    assert steps == [1]


def test_a_request_in_which_nothing_could_be_made_says_why(home, monkeypatch):
    def broken(*args):
        raise InputError("latent frame 0: holds NaN")

    monkeypatch.setattr("sora_jax.generate.sampling.batches.Batches.latents", broken)
    with pytest.raises(IncompleteError, match="a bird: latent frame 0: holds NaN"):
        sample(home / "run", job().request, None, mesh=MESH, console=QUIET)
