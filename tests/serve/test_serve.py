"""`sora-jax serve`: what it refuses, a real model, and the page in a headless browser."""

import asyncio
import http.client
import importlib.util
import io
import os
import pathlib
import shutil
import socket
import struct
import time
import zlib

import jax
import numpy as np
import pytest
import rich.console
from PIL import Image
from serving import LIMITS, serving
from test_tasks import write_run

from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.data.media.video import probe, read_frames
from sora_jax.data.media.write import write_clip
from sora_jax.generate.output.writer import read_metadata
from sora_jax.generate.request import Request, TaskInputs
from sora_jax.generate.sampling import long_videos as long
from sora_jax.serve import server
from sora_jax.serve.job_queue import JobQueue
from sora_jax.serve.jobs import JobStore
from sora_jax.serve.keys import ApiKeys, read_keys
from sora_jax.serve.loaded_model import LoadedModel, Loading
from sora_jax.serve.request_filter import RequestFilter
from sora_jax.serve.server import listen
from sora_jax.serve.uploads import suffix_of
from sora_jax.worlds.shapes.renderer import render, sample_scene

CHROMIUM = pathlib.Path("/usr/bin/chromium")
KEY = "k" * 24


def png_header(width, height):
    """A picture of a few bytes that says it is so large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_uploads_are_taken_by_their_content_within_bounds(tmp_path):
    Image.new("RGB", (64, 32)).save(tmp_path / "small.png")
    write_clip(tmp_path / "short.mp4", np.zeros((9, 32, 32, 3), np.uint8), fps=16)
    shutil.copy(tmp_path / "small.png", tmp_path / "named.mp4")
    assert suffix_of(tmp_path / "named.mp4", LIMITS, picture=True) == ".png"
    assert suffix_of(tmp_path / "short.mp4", LIMITS, picture=False) == ".mp4"
    (tmp_path / "bytes.mp4").write_bytes(b"0" * (2**20 + 1))
    (tmp_path / "words.mp4").write_text("#EXTM3U\nhttp://127.0.0.1/a.ts")
    (tmp_path / "wide.png").write_bytes(png_header(1000, 1000))
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    Image.new("RGB", (8, 8)).save(tmp_path / "other.bmp")
    write_clip(tmp_path / "long.mp4", np.zeros((61, 32, 32, 3), np.uint8), fps=16)
    for name, words in {
        "bytes.mp4": "1.0 MiB; at most 1 MiB are taken",
        "words.mp4": "an HLS playlist",
        "wide.png": "1000x1000; at most 65,536 pixels are taken",
        "bomb.png": "at most 65,536 pixels are taken",
        "long.mp4": "more than 60 frames; no more are taken",
        "small.png": "is of the format PNG; an MP4, MOV, WebM or Matroska video is taken",
        "other.bmp": "is of the format BMP",
    }.items():
        with pytest.raises(InputError) as raised:
            suffix_of(tmp_path / name, LIMITS, picture=name in ("wide.png", "bomb.png"))
        assert words in str(raised.value) and str(tmp_path) not in str(raised.value)


def ask(app, method, path, body=b"", client="1.2.3.4", **headers):
    """The status of an answer; 200 if the application behind the filter was asked."""
    headers = {"host": "127.0.0.1:7860", "content-length": str(len(body)), **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "client": (client, 1),
        "headers": [(key.replace("_", "-").encode(), value.encode("latin-1")) for key, value in headers.items()],
    }
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_requests_from_elsewhere_and_for_other_hosts_are_refused():
    guarded = RequestFilter(application, host="127.0.0.1", max_body=2**20)
    status, headers = ask(guarded, "GET", "/")
    assert status == 200 and b"default-src 'self'" in headers[b"content-security-policy"]
    for host in ("evil.example", "127.0.0.1.evil.example", "", "["):
        assert ask(guarded, "GET", "/", host=host)[0] in (400, 403)
    assert ask(guarded, "POST", "/", b"x", origin="http://evil.example")[0] == 403
    assert ask(guarded, "POST", "/", b"x", origin="null")[0] == 403
    assert ask(guarded, "POST", "/", b"x", origin="http://127.0.0.1:7860")[0] == 200
    assert ask(guarded, "POST", "/", content_length=str(2**21))[0] == 413
    assert ask(guarded, "POST", "/", content_length="9" * 4000)[0] == 413
    assert ask(guarded, "POST", "/", content_length="-1")[0] == 411
    # At an address that others reach, under whatever name.
    public = RequestFilter(application, host="0.0.0.0", max_body=1)
    assert ask(public, "GET", "/", host="box:7860")[0] == 200


def test_a_key_is_needed_compared_and_its_requests_are_counted():
    guarded = RequestFilter(application, host="0.0.0.0", max_body=1, keys=ApiKeys([KEY, "o" * 24], 3))
    with_key = {"authorization": f"Bearer {KEY}"}
    assert ask(guarded, "GET", "/")[0] == ask(guarded, "GET", "/health")[0] == 200
    for headers in (
        {},
        {"authorization": "Bearer "},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer {KEY}x"},
        {"cookie": "sora_jax_key=\xe9"},
    ):
        assert ask(guarded, "GET", "/v1/videos", **headers)[0] == 401
        assert ask(guarded, "GET", "/metrics", **headers)[0] == 401
    assert ask(guarded, "GET", "/v1/videos", **with_key)[0] == 200
    assert ask(guarded, "GET", "/v1/videos", cookie=f"a=b; sora_jax_key={KEY}")[0] == 200
    assert ask(guarded, "GET", "/v1/videos", **with_key)[0] == 200
    status, headers = ask(guarded, "GET", "/v1/videos", **with_key)
    assert status == 429 and 1 <= int(headers[b"retry-after"]) <= 60
    assert ask(guarded, "GET", "/v1/videos", authorization=f"Bearer {'o' * 24}")[0] == 200
    # Guessing is slow, and slows nobody else.
    guesses = [ask(guarded, "GET", "/v1/videos", client="6.6.6.6")[0] for _ in range(40)]
    assert guesses.count(401) == 30 and guesses[-1] == 429
    assert ask(guarded, "GET", "/v1/videos", authorization=f"Bearer {'o' * 24}")[0] == 200


def test_beyond_this_machine_keys_are_needed_and_weak_ones_are_refused(tmp_path, capsys):
    assert main(["serve", "--host=0.0.0.0"]) == 2
    assert "so it needs --api-key-file" in capsys.readouterr().err
    (tmp_path / "keys").write_text(f"# of Ann\n{KEY}\n\n")
    assert read_keys(tmp_path / "keys") == [KEY]
    for text, words in (("# none\n", "holds no key"), ("short\n", "needs 16 characters")):
        (tmp_path / "keys").write_text(text)
        with pytest.raises(InputError, match=words):
            read_keys(tmp_path / "keys")
    with pytest.raises(InputError, match="can't be read"):
        read_keys(tmp_path / "absent")


def test_silent_connections_random_bytes_and_readers_that_stop_are_cut(tmp_path, monkeypatch):
    for name, seconds in (("CHECK_SECONDS", 0.1), ("REQUEST_SECONDS", 0.5), ("STALLED_SECONDS", 0.5)):
        monkeypatch.setattr(server, name, seconds)
    with serving(tmp_path / "out") as running:
        store = running.queue.store

        def connect(sent=b"", buffer=0):
            client = socket.socket()
            if buffer:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            client.connect(("127.0.0.1", running.port))
            client.sendall(sent)
            client.settimeout(10)
            return client

        job = running.queue.submit(Request(("a bird",)))
        while not job.over:
            running.queue.wait(job, 0.1)
        store.video(job).write_bytes(b"0" * 2**24)
        path = f"/v1/videos/{job.id}/content".encode()
        silent = [connect(), connect(b"GET / HT"), connect(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx-")]
        random = connect(np.random.default_rng(0).bytes(5000))
        slow = connect(b"GET " + path + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", buffer=4096)
        assert slow.recv(8) == b"HTTP/1.1"
        for client in silent:
            assert client.recv(1) == b""
        assert random.recv(100)[:12] in (b"", b"HTTP/1.1 400")
        end = time.monotonic() + 10
        while running.server.server_state.connections:
            assert time.monotonic() < end
            time.sleep(0.05)
        connection = http.client.HTTPConnection("127.0.0.1", running.port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200


def test_windows_are_counted_before_they_are_sampled():
    """24 frames in windows of 9, 6, 6 and 6, as an interrupted minute has them; 2 frames a latent."""
    assert long.count(2, 9, 24, None, backward=False) == 4
    assert long.count(2, 9, 9, None, backward=False) == 1
    assert long.count(2, 9, 10, None, backward=False) == 2
    film = type("Film", (), {"frames": 40})
    assert long.count(2, 9, 12, film, backward=False) == 2  # 6 and 6 after three that are known
    assert long.count(2, 9, 11, film, backward=True) == 3  # 5, 5 and 5 before two that are known


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--checkpoint=absent"], "absent"),
        (["--port=0"], "port"),
        (["--keep-days=-1"], "keep"),
    ],
)
def test_a_server_that_can_not_begin_says_why_in_one_line(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *flags]) == 2
    told = "".join(capsys.readouterr()).strip().splitlines()
    assert len(told) == 1 and words in told[0]


def test_without_a_web_server_the_command_that_installs_it_is_told(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["serve", "--checkpoint=run"]) == 2
    assert "pip install 'sora_jax[serve]'" in capsys.readouterr().err


def test_a_taken_port_and_an_unknown_host_are_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port={port}: is taken"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match="--host=no such host: no address"):
        listen("no such host", 7860)


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("serve") / "run", text=1.0, first_frame=1.0)
    console = rich.console.Console(quiet=True)
    model = LoadedModel(run, Loading(MeshSettings()), limits=LIMITS, console=console)
    return JobQueue(model, JobStore(run.parent / "made"), console=console)


def finished(queue, job, seconds=120):
    end = time.monotonic() + seconds
    while not job.over and not job.stop.is_set() and time.monotonic() < end:
        queue.wait(job, 0.5)
    return job


@pytest.mark.slow
def test_a_second_request_of_the_same_shape_compiles_nothing_and_a_seed_has_its_bits(queue):
    compiled = []

    def listener(event, duration, **_):
        compiled.append(event) if event.endswith("backend_compile_duration") else None

    first = finished(queue, queue.submit(Request(("a bird",), seed=1)))
    assert first.state == "completed", first.error
    assert (first.done, first.total) == (2, 2)
    jax.monitoring.register_event_duration_secs_listener(listener)
    second = finished(queue, queue.submit(Request(("a rabbit",), seed=2)))
    same = list(compiled)
    third = finished(queue, queue.submit(Request(("a rabbit",), seed=2, changes={"frames": 5})))
    again = finished(queue, queue.submit(Request(("a bird",), seed=1)))
    assert second.state == third.state == "completed" and same == [] and compiled != []
    videos = [queue.store.video(job) for job in (first, second, again)]
    assert read_metadata(videos[1])["prompt"] == "a rabbit"
    frames = [list(frames_of(path)) for path in videos]
    assert np.array_equal(frames[0], frames[2]) and not np.array_equal(frames[0], frames[1])


def frames_of(path):
    video = probe(path)
    return read_frames(video, [(video.height, video.width)], fps=video.fps)


@pytest.mark.slow
def test_a_deleted_request_ends_after_its_step_and_the_next_is_made(queue):
    job = queue.submit(Request(("a bird",), changes={"steps": 1000}))
    while job.done < 2:
        queue.wait(job, 0.1)
    waits = queue.submit(Request(("a bird",)))
    dropped = queue.submit(Request(("a bird",)))
    assert queue.ahead(waits) == 1 and queue.ahead(dropped) == 2
    assert queue.delete(dropped.id) and queue.delete(job.id) and not queue.delete(job.id)
    assert finished(queue, waits).state == "completed"
    assert 2 <= job.done < 900
    assert not queue.store.video(job).exists() and not queue.store.video(dropped).exists()
    assert not list(queue.store.out.glob(".*"))


@pytest.mark.slow
def test_requests_that_wait_run_together_and_look_as_they_do_alone(queue):
    first = queue.submit(Request(("a bird",), seed=3, changes={"steps": 40}))
    sizes = ("64x64", "64x32")
    waiting = [queue.submit(Request(("a rabbit",), seed=5, changes={"size": size})) for size in sizes]
    assert queue.waiting >= 2
    while not first.preview:
        first.looked = time.monotonic()
        queue.wait(first, 0.05)
    assert Image.open(io.BytesIO(first.preview)).size == (64, 64)
    jobs = [finished(queue, job) for job in waiting]
    assert {job.state for job in jobs} == {"completed"} and len({round(job.completed) for job in jobs}) == 1
    alone = finished(queue, queue.submit(Request(("a rabbit",), seed=5)))
    pair = [np.stack(list(frames_of(queue.store.video(job)))).astype(int) for job in (jobs[0], alone)]
    assert pair[0].shape == pair[1].shape and np.abs(pair[0] - pair[1]).mean() < 1  # of 255: sums in another order


@pytest.mark.slow
def test_a_request_that_can_not_be_served_is_told_and_the_next_is_served(queue, tmp_path):
    with pytest.raises(InputError, match="--video: is needed for --task=extend"):
        queue.submit(Request(("a bird",), TaskInputs(task="extend", seconds=1.0)))
    with pytest.raises(InputError, match="--size=9999x9999: at most"):
        queue.submit(Request(("a bird",), changes={"size": "9999x9999"}))
    with pytest.raises(InputError, match="--frames=4: must be 2 n \\+ 1"):
        queue.submit(Request(("a bird",), changes={"frames": 4}))
    write_clip(tmp_path / "cat.mp4", render(sample_scene(3, 2), frames=20, size=(80, 64)), fps=16)
    kept = queue.store.keep(tmp_path / "cat.mp4", ".mp4")
    job = finished(
        queue, queue.submit(Request(("a bird",), TaskInputs(task="edit", videos=(kept,), strength=0.0)))
    )
    assert job.state == "completed", job.error
    job = finished(
        queue, queue.submit(Request(("a bird",), TaskInputs(task="extend", videos=(kept,), seconds=0.5)))
    )
    assert job.state == "completed" and job.done == job.total
    assert job.frames == probe(queue.store.video(job)).frames == 19 + 8
    assert "scaled to cover 64x64" in job.notes[0]


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path):
    """A prompt, a picture, a job cancelled, an upload that is too large; by keys, a phone, a restart."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs sora_jax[ci]: playwright")
    if not CHROMIUM.exists() and not shutil.which("chromium"):
        pytest.skip("needs Chromium, on Debian: apt install chromium")
    Image.fromarray(render(sample_scene(3, 4), frames=1, size=(64, 64))[0]).save(tmp_path / "cat.png")
    (tmp_path / "large.png").write_bytes(b"0" * 2**21)
    broken, elsewhere, see = [], [], os.environ.get("SORA_JAX_SCREENSHOTS")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium") or str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.set_default_timeout(20_000)

        def shoot(name):
            if see:
                page.screenshot(path=f"{see}/{name}.png", full_page=True)

        def task(name):
            page.get_by_role("radio", name=name).check(force=True)

        def playing():
            page.wait_for_function("() => document.querySelector('#stage video')?.currentTime > 0")

        with serving(tmp_path / "made", step_seconds=0.02) as running:
            local = ("http://127.0.0.1:", "data:", "blob:")
            page.on("request", lambda asked: asked.url.startswith(local) or elsewhere.append(asked.url))
            page.goto(running.address)
            words = "<img src=x onerror=alert(1)> a bird"
            page.get_by_label("Prompt", exact=True).fill(words)
            page.get_by_role("button", name="Make it").click()
            playing()
            assert words in page.locator("#gallery .card").inner_text()
            assert "Made" in page.get_by_role("status").inner_text()
            shoot("made")

            task("Animate")
            page.get_by_label("First frame", exact=True).set_input_files(tmp_path / "cat.png")
            page.locator("[data-given=input_reference] img").wait_for()
            page.get_by_role("button", name="Make it").click()
            page.wait_for_function("() => document.querySelectorAll('#gallery img').length == 2")
            playing()
            shoot("animated")
            page.get_by_role("button", name="Use its settings").click()
            assert page.get_by_label("Prompt", exact=True).input_value() == words
            page.get_by_role("button", name="Make it").click()
            page.wait_for_function("() => document.querySelectorAll('#gallery img').length == 3")
            assert running.model.made[1].inputs == running.model.made[2].inputs

            page.get_by_role("button", name="Use as input").click()
            page.locator("[data-given=video] video").wait_for()
            assert page.get_by_role("radio", name="Extend").is_checked()
            page.get_by_label("Seconds").fill("1")
            page.get_by_role("button", name="Make it").click()
            page.wait_for_function("() => document.querySelectorAll('#gallery img').length == 4")
            assert running.model.made[3].inputs.seconds == 1

            task("Text")
            page.get_by_text("Settings", exact=True).click()
            page.get_by_label("Seed").fill("seven")
            page.get_by_role("button", name="Make it").click()
            page.get_by_role("alert").get_by_text("seed: ").wait_for()
            page.get_by_label("Seed").fill("7")
            page.get_by_label("Steps").fill("1000")
            page.get_by_role("button", name="Make it").click()
            page.get_by_text("of 1000 · seed 7").wait_for()
            page.get_by_alt_text("Preview").wait_for()
            shoot("running")
            page.get_by_role("button", name="Cancel").click()
            page.get_by_text("Cancelled.").wait_for()
            task("Animate")
            page.get_by_label("First frame", exact=True).set_input_files(tmp_path / "large.png")
            page.get_by_text("large.png: 2 MiB; at most 1 MiB are taken").wait_for()

        # Another server at another port, with a key; the gallery is that of the folder.
        with serving(tmp_path / "made", keys=(KEY,)) as running:
            page.set_viewport_size({"width": 390, "height": 800})
            page.goto(running.address)
            page.get_by_label("Key", exact=True).fill("wrong" * 5)
            page.keyboard.press("Enter")
            page.get_by_text("the key is wrong").wait_for()
            page.get_by_label("Key", exact=True).fill(KEY)
            page.keyboard.press("Enter")
            page.wait_for_function("() => document.querySelectorAll('#gallery img').length == 4")
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
            shoot("phone")
            # By keys alone: from the top to the prompt, a video made, a card opened.
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            page.keyboard.type("a fish")
            page.get_by_label("Prompt", exact=True).press("Tab")
            page.get_by_role("button", name="Make it").press("Enter")
            page.wait_for_function("() => document.querySelectorAll('#gallery img').length == 5")
            page.locator(".card").last.press("Enter")
            page.get_by_text("How it was made").press("Enter")
            assert words in page.locator("#facts").inner_text()
            assert unnamed(page) == []
            shoot("phone-video")
        browser.close()
    assert broken == [] and elsewhere == []


def unnamed(page) -> list[str]:
    """Controls that a screen reader has no name for."""
    return page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea, a, progress, video')]
        .filter(one => one.checkVisibility() && !one.closest('.picture, .given') && !one.labels?.length
          && !one.textContent.trim() && !one.getAttribute('aria-label')).map(one => one.outerHTML)"""
    )
