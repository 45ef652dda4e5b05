"""Jobs that outlive the process, and how long videos stay."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import rich.console
from serving import DrawingModel, serving

from sora_jax.generate.request import Request, TaskInputs
from sora_jax.serve.job_queue import JobQueue, Retention
from sora_jax.serve.jobs import COMPLETED, FAILED, Job, JobStore
from sora_jax.serve.priority import STEPS, giving_way

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
QUIET = rich.console.Console(quiet=True)


def ended(queue: JobQueue, job: Job) -> Job:
    end = time.monotonic() + 20
    while not job.over and time.monotonic() < end:
        queue.wait(job, 0.1)
    return job


def test_a_record_brings_back_the_whole_request(tmp_path):
    store = JobStore(tmp_path)
    file = store.inputs / "0123456789abcdef.png"
    for number, inputs in enumerate(
        (
            TaskInputs(),
            TaskInputs("keyframes", keyframes=(f"0.5:{file}",), watermark="mark"),
            TaskInputs("connect", videos=(file, file), seconds=1.5),
            TaskInputs("image", image=file, last_image=file),
            TaskInputs("extend", videos=(file,), seconds=2.0, direction="backward", story=("a", "b")),
            TaskInputs("edit", videos=(file,), strength=0.0),
            TaskInputs("inpaint", videos=(file,), mask=file),
        )
    ):
        request = Request(("a bird",), inputs, 2**63, "rain", {"steps": 3, "size": "64x32"})
        job = Job(
            f"video_{number}", request, "a.mp4", float(number), (64, 32), 16.0, 9, notes=("cut",), source="v"
        )
        store.save(job)
        loaded = store.load()[number]
        request = dataclasses.replace(request, inputs=dataclasses.replace(inputs, task=inputs.name))
        assert loaded.request == request
        assert {**vars(loaded), "stop": 0, "request": 0} == {**vars(job), "stop": 0, "request": 0}
    (store.records / "video_x.json").write_text("{")
    assert len(store.load()) == 7


SERVER = """
import sys, time, pathlib
from serving import Server
server = Server(pathlib.Path(sys.argv[1]), step_seconds=0.05)
print(server.url, flush=True)
time.sleep(600)
"""


def test_a_killed_server_makes_again_what_it_had_begun(tmp_path):
    """SIGKILL between two steps: what is finished is listed, and what is not is made, with the same seeds."""
    paths = [*sys.path, str(pathlib.Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SERVER, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        url = process.stdout.readline().strip()
        with openai.OpenAI(api_key="x", base_url=url) as client:
            done = client.videos.create_and_poll(prompt="done", extra_body={"seed": 3}, poll_interval_ms=20)
            content = client.videos.download_content(done.id).read()
            running = client.videos.create(prompt="running", extra_body={"seed": 3, "steps": 50})
            waiting = client.videos.create(prompt="waiting")
            while client.videos.retrieve(running.id).step < 3:
                time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with serving(tmp_path / "out") as server, openai.OpenAI(api_key="x", base_url=server.url) as client:
        assert [video.id for video in client.videos.list(order="asc")] == [done.id, running.id, waiting.id]
        assert client.videos.retrieve(done.id).to_dict() == done.to_dict()
        for video in (running, waiting):
            again = client.videos.poll(video.id, poll_interval_ms=20)
            assert (again.status, again.seed, again.created_at) == ("completed", video.seed, video.created_at)
        assert client.videos.download_content(running.id).read() == content
        assert [request.prompts[0] for request in server.model.made] == ["running", "waiting"]


def test_a_job_that_ended_the_process_twice_fails_and_a_complete_file_is_kept(tmp_path):
    store = JobStore(tmp_path)
    model = DrawingModel()
    job = Job("video_1", Request(("a",)), "a.mp4", 1.0, (64, 64), 16.0, 9, state="in_progress", attempts=2)
    kept = Job("video_2", Request(("a",)), "b.mp4", 2.0, (64, 64), 16.0, 1, state="in_progress", attempts=1)
    model.draw(kept.request, store.video(kept), lambda done, total: None)
    for each in (job, kept):
        store.save(each)
    queue = JobQueue(model, store, console=QUIET)
    assert queue.get("video_1").state == FAILED and queue.get("video_1").error[0] == "server_restarted"
    assert queue.get("video_2").state == COMPLETED and queue.get("video_2").frames == 9
    assert len(model.made) == 1
    assert [again.state for again in store.load()] == [FAILED, COMPLETED]


def test_a_clean_end_counts_as_no_attempt(tmp_path):
    queue = JobQueue(DrawingModel(step_seconds=0.2), JobStore(tmp_path), console=QUIET)
    job = queue.submit(Request(("a bird",)))
    while not queue.running:
        time.sleep(0.01)
    assert queue.store.load()[0].attempts == 1
    queue.release()
    assert queue.store.load()[0].attempts == 0 and ended(queue, job).state == COMPLETED


def test_old_videos_and_those_above_the_room_are_deleted_with_their_inputs(tmp_path):
    store, model = JobStore(tmp_path), DrawingModel()
    now = time.time()
    unused = store.inputs / "0123456789abcdef.png"
    unused.write_bytes(b"0")
    os.utime(unused, (now - 7200, now - 7200))
    for number, days in enumerate((9, 3, 2, 1)):
        ago = now - days * 86_400
        job = Job(f"video_{number}", Request(("a",)), f"{number}.mp4", ago, (64, 64), 16.0, 9, ago, COMPLETED)
        store.video(job).write_bytes(b"0" * 2**20)
        store.save(job)
    queue = JobQueue(model, store, console=QUIET, retention=Retention(days=7, gib=2.5 / 1024))
    ended(queue, queue.submit(Request(("a bird",))))
    time.sleep(0.05)
    left = [job.id for job in queue.newest()]
    assert left[1:] == ["video_3", "video_2"] and not unused.exists()
    assert sorted(path.name for path in store.out.glob("?.mp4")) == ["2.mp4", "3.mp4"]
    assert len(list(store.records.iterdir())) == 3


def test_jobs_and_their_files_may_lie_in_a_bucket(folder):
    with serving(folder / "out") as server, openai.OpenAI(api_key="x", base_url=server.url) as client:
        video = client.videos.create_and_poll(prompt="a bird", poll_interval_ms=50)
        assert client.videos.download_content(video.id).read()[4:8] == b"ftyp"
        other = client.videos.edit(prompt="a bird", video=openai.omit, extra_body={"video": {"id": video.id}})
        assert client.videos.poll(other.id, poll_interval_ms=50).status == "completed"
    store = JobStore(folder / "out")
    assert [job.id for job in store.load()] == [video.id, other.id]
    queue = JobQueue(DrawingModel(), store, console=QUIET)
    assert queue.delete(video.id) and queue.delete(other.id) and not queue.delete(other.id)
    assert not list((folder / "out").glob("*.mp4")) and not store.load()


def test_inputs_are_kept_while_a_job_has_them(tmp_path):
    store = JobStore(tmp_path / "out")
    (tmp_path / "a.png").write_bytes(b"0")
    kept = store.keep(tmp_path / "a.png", ".png")
    assert store.keep(tmp_path / "a.png", ".png") == kept and kept.parent == store.inputs
    job = Job("video_1", Request(("a",), TaskInputs(image=kept)), "a.mp4", 1.0, (64, 64), 16.0, 9)
    store.remove_unused_inputs([job], older=-1)
    assert kept.is_file()
    store.remove_unused_inputs([], older=3600)
    assert kept.is_file()
    store.remove_unused_inputs([], older=-1)
    assert not kept.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
def test_threads_that_compute_give_way_and_pass_that_on():
    def own():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def with_started():
        with ThreadPoolExecutor(1) as executor:
            return own(), executor.submit(own).result()

    before = own()
    assert giving_way(with_started) == (min(19, before + STEPS),) * 2
    assert own() == before
