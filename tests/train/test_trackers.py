"""Numbers and sample videos of a run in TensorBoard, Weights & Biases and MLflow, without any network."""

import io
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import rich.console
from tensorboardX.proto.event_pb2 import Event

from sora_jax.core.errors import InputError
from sora_jax.train.monitoring import trackers
from sora_jax.train.monitoring.sample_videos import gif_of
from sora_jax.train.monitoring.trackers import Gif, Trackers, check_trackers

SETTINGS = {"objective": "flow", "train": {"steps": 4}}
VIDEO = "samples/000"


def begin(name: str, workdir: pathlib.Path, start: int) -> tuple[Trackers, io.StringIO]:
    text = io.StringIO()
    return Trackers([name], workdir, start, SETTINGS, rich.console.Console(file=text, width=400)), text


def run_twice(name: str, workdir: pathlib.Path):
    """A run of two logged steps, and its continuation by another two with a video."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)
    for start in (0, 2):
        time.sleep(1.1 if name == "wandb" and start else 0)  # the second is in its folder's name
        run, text = begin(name, workdir, start)
        for step in (start + 1, start + 2):
            run.scalars(step, {"loss": 1 / step, "data_wait": 0.5})
        if start:
            run.video(4, VIDEO, Gif(gif_of(frames, 8.0), 16, 24, "a red circle"))
        run.close()
        assert text.getvalue() == ""


LOSSES = {1: 1.0, 2: 1 / 2, 3: 1 / 3, 4: 1 / 4}


def test_tensorboard_holds_numbers_and_videos_of_both_starts(tmp_path):
    run_twice("tensorboard", tmp_path)
    losses, videos = {}, {}
    for file in (tmp_path / "tensorboard").iterdir():
        data = file.read_bytes()
        while data:  # records of length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            for value in event.summary.value:
                if value.HasField("image"):
                    videos[event.step, value.tag] = value.metadata.display_name
                elif value.tag == "loss":
                    losses[event.step] = value.simple_value
    assert losses == pytest.approx(LOSSES)
    assert videos == {(4, VIDEO): f"{VIDEO} a red circle"}


def test_wandb_offline_holds_numbers_and_videos_of_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs sora_jax[wandb]")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    run_twice("wandb", tmp_path)
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    (number,) = {folder.name.split("-")[-1] for folder in folders}
    assert number == json.loads((tmp_path / trackers.FILE).read_text())["id"]
    until, records = time.monotonic() + 10, []
    while sum(record.HasField("exit") for record in records) < 2 and time.monotonic() < until:
        files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
        records = [Record.FromString(data) for file in files for data in leveldb_records(file.read_bytes())]
    losses, videos, settings = {}, set(), {}
    for record in records:
        settings |= {item.key: item.value_json for item in record.run.config.update}
        history = {tuple(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if history:
            losses[history[("_step",)]] = history[("loss",)]
        if (VIDEO, "caption") in history:
            videos.add((history[("_step",)], VIDEO, history[VIDEO, "caption"]))
    assert losses == pytest.approx(LOSSES)
    assert videos == {(4, VIDEO, "a red circle")}
    assert json.loads(settings["train"]) == {"steps": 4}
    assert list(tmp_path.glob("wandb/*/files/media/videos/samples/000_*.gif"))


def leveldb_records(data: bytes):
    """The records of a .wandb file: LevelDB's log, after a header of 7 bytes."""
    place, parts = 7, []
    while place < len(data):
        if 32768 - place % 32768 < 7:  # no record header crosses a block
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts.append(data[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # full, last
            yield b"".join(parts)
            parts = []


def test_mlflow_holds_numbers_and_videos_of_one_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs sora_jax[mlflow]")
    monkeypatch.chdir(tmp_path)  # artifacts of a database lie in the current folder
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    run_twice("mlflow", tmp_path)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("sora_jax")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {point.step: point.value for point in history} == pytest.approx(LOSSES)
    assert run.data.params == {"objective": "flow", "train.steps": "4"} and run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id, VIDEO)] == [f"{VIDEO}/4.gif"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_server_that_is_not_there_costs_one_warning(name, tmp_path):
    pytest.importorskip(name, reason=f"needs sora_jax[{name}]")
    program = f"""
import pathlib, rich.console
from sora_jax.train.monitoring import trackers
trackers.INIT_SECONDS = 2
run = trackers.Trackers(["{name}"], pathlib.Path("run"), 0, {{}}, rich.console.Console(width=400))
run.scalars(1, {{"loss": 1.0}})
run.close()
"""
    with socket.socket() as taken:  # bound and not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        # Not in this process: these libraries keep what they were first told.
        environment = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"} | {
            "MLFLOW_TRACKING_URI": url,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"warning: tracker {name} failed, and the run goes on without it")


def test_a_tracker_that_fails_or_hangs_costs_one_warning_and_no_time(tmp_path, monkeypatch):
    release = threading.Event()

    class Failing(trackers.TensorBoard):
        def scalars(self, step, values):
            raise OSError("no space")

    class Hanging(trackers.TensorBoard):
        def scalars(self, step, values):
            release.wait()

    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.2)
    for tracker, writes, wanted in (
        (Failing, 10, ["warning: tracker tensorboard failed, and the run goes on without it: OSError: no space"]),
        (
            Hanging,
            1100,
            ["warning: tracker tensorboard is 1000 writes behind, and loses what it can't take"],
        ),
    ):
        monkeypatch.setitem(trackers.TRACKERS, "tensorboard", tracker)
        run, text = begin("tensorboard", tmp_path, 0)
        for step in range(writes):
            run.scalars(step, {"loss": 1.0})
        run.close()
        assert text.getvalue().splitlines() == wanted
    release.set()


def test_an_unknown_tracker_and_an_absent_package_are_told_before_the_run(monkeypatch):
    with pytest.raises(InputError, match="no tracker 'wandbb', did you mean 'wandb'"):
        check_trackers(["tensorboard", "wandbb"])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'sora_jax\[mlflow\]'"):
        check_trackers(["mlflow"])
