"""`sora-jax serve`: what it refuses, and the page in a headless browser."""

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib

import jax
import numpy as np
import pytest
import rich.console
from PIL import Image
from test_tasks import write_run

from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.data.media.video import probe
from sora_jax.data.media.write import write_clip
from sora_jax.generate.output.writer import read_metadata
from sora_jax.generate.request import Request, TaskInputs
from sora_jax.generate.sampling import long_videos as long
from sora_jax.serve.job_queue import JobQueue
from sora_jax.serve.request_filter import RequestFilter
from sora_jax.serve.uploads import Limits, admit
from sora_jax.worlds.shapes.renderer import render, sample_scene

CHROMIUM = pathlib.Path("/usr/bin/chromium")
LIMITS = Limits(bytes=2**20, pixels=256 * 256, frames=60)


@pytest.fixture
def uploads(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


def png_header(width, height):
    """A picture of a few bytes that says it is so large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_uploads_are_bounded_and_lie_where_uploads_lie(uploads, tmp_path):
    Image.new("RGB", (64, 32)).save(uploads / "small.png")
    assert admit(uploads / "small.png", uploads, LIMITS) == (uploads / "small.png").resolve()
    (uploads / "bytes.mp4").write_bytes(b"0" * (2**20 + 1))
    (uploads / "words.mp4").write_text("no video")
    (uploads / "wide.png").write_bytes(png_header(1000, 1000))
    (uploads / "bomb.png").write_bytes(png_header(60_000, 60_000))
    write_clip(uploads / "long.mp4", np.zeros((61, 32, 32, 3), np.uint8), fps=16)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (uploads / "link.png").symlink_to(tmp_path / "secret.png")
    for name, words in {
        "bytes.mp4": "bytes.mp4: 1.0 MiB; at most 1 MiB are taken",
        "words.mp4": "words.mp4: ",
        "wide.png": "wide.png: 1000x1000; at most 65,536 pixels are taken",
        "bomb.png": "bomb.png: at most 65,536 pixels are taken",
        "long.mp4": "long.mp4: more than 60 frames; no more are taken",
        "link.png": "secret.png: was not uploaded here",
        "../secret.png": "secret.png: was not uploaded here",
        "absent.png": "absent.png: was not uploaded here",
    }.items():
        with pytest.raises(InputError) as raised:
            admit(uploads / name, uploads, LIMITS)
        assert words in str(raised.value) and str(tmp_path) not in str(raised.value)


def ask(app, method, path, body=b"", **headers):
    """The status of an answer; 200 if the application behind the filter was asked, and got the whole body."""
    headers = {"host": "127.0.0.1:7860", "content-length": str(len(body)), **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()],
    }
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_requests_from_elsewhere_for_other_files_and_for_addresses_are_refused(uploads):
    bodies = []

    async def application(scope, receive, send):
        bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    request_filter = RequestFilter(application, uploads=uploads, max_bytes=1000, host="127.0.0.1")
    status, headers = ask(request_filter, "GET", "/")
    assert status == 200 and b"default-src 'self'" in headers[b"content-security-policy"]
    assert ask(request_filter, "GET", "/", host="evil.example")[0] == 403
    assert ask(request_filter, "POST", "/gradio_api/upload", b"x", origin="http://evil.example")[0] == 403
    assert ask(request_filter, "POST", "/gradio_api/upload", b"x", origin="http://127.0.0.1:7860")[0] == 200
    assert ask(request_filter, "POST", "/gradio_api/upload", content_length=str(2**21))[0] == 413
    for path in ("file=http://evil.example/a.png", "proxy=https://evil.example", "run/start", "call/start"):
        assert ask(request_filter, "GET", f"/gradio_api/{path}")[0] == 404

    def join(file):
        body = json.dumps({"data": ["a", [{"value": file}]], "fn_index": 1}).encode()
        status, _ = ask(request_filter, "POST", "/gradio_api/queue/join", body)
        assert status != 200 or bodies[-1] == body
        return status

    url = "http://127.0.0.1:7860/gradio_api/file=x"
    assert join({"path": str(uploads / "a" / "cat.png"), "url": url}) == 200
    assert join({"path": "/etc/passwd"}) == join({"path": str(uploads / "../secret.png")}) == 403
    assert join({"path": "http://evil.example/a.png"}) == join({"url": "data:image/png;base64,AAAA"}) == 403
    assert join("a" * 2**20) == 413
    # Of another machine, by its name: the same page.
    public = RequestFilter(application, uploads=uploads, max_bytes=1, host="0.0.0.0")
    assert ask(public, "GET", "/", host="box:7860")[0] == 200


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
    ],
)
def test_a_page_without_a_model_is_refused_in_one_line(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert main(["serve", *flags]) == 2
    told = "".join(capsys.readouterr()).strip().splitlines()
    assert len(told) == 1 and words in told[0]


def test_without_gradio_the_command_that_installs_it_is_told(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["serve", "--checkpoint=run"]) == 2
    assert "pip install 'sora_jax[serve]'" in capsys.readouterr().err


def test_a_taken_port_and_an_unknown_host_are_told():
    from sora_jax.serve.serve import listen

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--port={port}: is taken"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match="--host=no such host: no address"):
        listen("no such host", 7860)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("serve") / "run", text=1.0, first_frame=1.0)


@pytest.fixture(scope="module")
def queue(run):
    console = rich.console.Console(quiet=True)
    return JobQueue(run, run.parent / "made", mesh=MeshSettings(), limits=LIMITS, console=console)


def finished(queue, job, seconds=120):
    end = time.monotonic() + seconds
    while not job.over and time.monotonic() < end:
        queue.wait(job, 0.5)
    return job


@pytest.mark.slow
def test_a_second_request_of_the_same_shape_compiles_nothing(queue):
    compiled = []

    def listener(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    first = finished(queue, queue.submit(Request(("a bird",), seed=1)))
    assert first.state == "made", first.error
    assert (first.done, first.total) == (2, 2)
    jax.monitoring.register_event_duration_secs_listener(listener)
    second = finished(queue, queue.submit(Request(("a rabbit",), seed=2)))
    same = list(compiled)
    third = finished(queue, queue.submit(Request(("a rabbit",), seed=2, changes={"frames": 5})))
    assert second.state == third.state == "made" and same == [] and compiled != []
    assert read_metadata(second.out)["prompt"] == "a rabbit"
    assert [path for path, _ in queue.finished()] == [third.out, second.out, first.out]


@pytest.mark.slow
def test_a_cancelled_request_ends_after_its_step_and_the_next_is_made(queue):
    job = queue.submit(Request(("a bird",), changes={"steps": 1000}))
    waits = queue.submit(Request(("a bird",)))
    dropped = queue.submit(Request(("a bird",)))
    while job.done < 2:
        queue.wait(job, 0.5)
    assert queue.ahead(waits) == 1 and queue.ahead(dropped) == 2
    queue.stop(dropped)
    queue.stop(job)
    finished(queue, job)
    assert (job.state, dropped.state) == ("stopped", "stopped") and 2 <= job.done < 900
    assert finished(queue, waits).state == "made"
    assert not job.out.exists() and not dropped.out.exists()
    assert not list(queue.out.glob(".*"))


@pytest.mark.slow
def test_a_request_that_can_not_be_served_is_told_and_the_next_is_served(queue, tmp_path):
    with pytest.raises(InputError, match="--video: is needed for --task=extend"):
        queue.submit(Request(("a bird",), TaskInputs(task="extend", seconds=1.0)))
    with pytest.raises(InputError, match="--size=9999x9999: at most"):
        queue.submit(Request(("a bird",), changes={"size": "9999x9999"}))
    job = finished(queue, queue.submit(Request(("a bird",), changes={"frames": 4})))
    assert job.state == "failed" and "--frames=4: must be 2 n + 1" in job.error
    write_clip(tmp_path / "cat.mp4", render(sample_scene(3, 2), frames=20, size=(80, 64)), fps=16)
    kept = queue.keep(tmp_path / "cat.mp4")
    (tmp_path / "cat.mp4").unlink()
    job = finished(
        queue, queue.submit(Request(("a bird",), TaskInputs(task="extend", videos=(kept,), seconds=0.5)))
    )
    assert job.state == "made" and job.done == job.total and probe(job.out).frames == 19 + 8
    assert "scaled to cover 64x64" in job.notes[0]


@contextlib.contextmanager
def served(run, out, log):
    """The page in a process of its own: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        "import sys, pathlib, rich.console, jax\n"
        "jax.config.update('jax_disable_most_optimizations', True)\n"
        "from sora_jax.serve.serve import Loading, serve\n"
        "from sora_jax.serve.uploads import Limits\n"
        "from sora_jax.config.schema import MeshSettings\n"
        f"serve(pathlib.Path({str(run)!r}), pathlib.Path({str(out)!r}), address=('127.0.0.1', {port}),\n"
        "      examples=['a bird'], loading=Loading(MeshSettings()), console=rich.console.Console(stderr=True),\n"
        "      limits=Limits(bytes=2**20, pixels=256 * 256, frames=60))\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with log.open("w") as told:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=told, stderr=told, env=environment)
    try:
        end = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("GET", "/config")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_the_page_in_a_browser(run, tmp_path):
    """A prompt typed, a video played, a picture animated, a job cancelled, an upload that is too large."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs sora_jax[ci]: playwright")
    pytest.importorskip("gradio", reason="needs sora_jax[serve]")
    if not CHROMIUM.exists() and not shutil.which("chromium"):
        pytest.skip("needs Chromium, on Debian: apt install chromium")
    Image.fromarray(render(sample_scene(3, 4), frames=1, size=(64, 64))[0]).save(tmp_path / "cat.png")
    (tmp_path / "large.png").write_bytes(b"0" * 2**21)
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    with served(run, tmp_path / "made", tmp_path / "log") as address, playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium") or str(CHROMIUM), args=options.split()
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        asked, broken = [], []
        page.on("request", lambda request: asked.append(request.url))
        # A player that gives way to the next video before it has begun says so; nothing is broken.
        gave_way = "play() request was interrupted"
        page.on("pageerror", lambda error: gave_way in str(error) or broken.append(str(error)))
        page.goto(address)
        see = os.environ.get("SORA_JAX_SCREENSHOTS")

        def shoot(name):
            if see:
                page.screenshot(path=f"{see}/{name}.png")

        words = "<img src=x onerror=alert(1)> a bird"
        page.locator("#prompt textarea").fill(words)
        page.locator("#make").click()
        page.get_by_text("Made in").wait_for(timeout=200_000)
        page.wait_for_function(
            "() => { const v = document.querySelector('#result video'); return v?.currentTime > 0 && v.loop; }",
            timeout=60_000,
        )
        page.locator("#gallery .card").wait_for()
        assert words in page.locator("#gallery .card").inner_text()
        shoot("made")

        page.locator("#task label", has_text="Animate").click()
        page.locator("#image input[type=file]").set_input_files(tmp_path / "cat.png")
        page.locator("#image img").wait_for()
        page.locator("#make").click()
        page.wait_for_function("() => document.querySelectorAll('#gallery .card').length == 2", timeout=200_000)
        shoot("animated")

        page.locator("#gallery .card").first.click()
        page.locator("#use").click()
        page.locator("#video video").wait_for()

        page.locator("#task label", has_text="Text").first.click()
        page.get_by_text("Settings", exact=True).click()
        assert page.locator("#seed input, #seed textarea").input_value() == ""
        page.locator("#seed input, #seed textarea").fill("seven")
        page.locator("#make").click()
        page.get_by_text("--seed=seven: is no whole number").wait_for()
        page.locator("#seed input, #seed textarea").fill("7")
        page.locator("#steps input").fill("1000")
        page.locator("#make").click()
        page.get_by_text("of 1000 · seed 7").wait_for(timeout=200_000)
        page.locator("#stop").click()
        page.get_by_text("Cancelled after step").wait_for(timeout=60_000)

        page.locator("#task label", has_text="Animate").click()
        page.locator("#image input[type=file]").set_input_files(tmp_path / "large.png")
        page.get_by_text("large.png: 2 MiB; at most 1 MiB are taken").wait_for(timeout=10_000)
        shoot("refused")
        # Nor does the server take it, whoever sends it.
        form = {"files": {"name": "large.png", "mimeType": "image/png", "buffer": b"0" * (2**20 + 1)}}
        assert page.request.post(f"{address}/gradio_api/upload", multipart=form).status == 413
        for path in (tmp_path / "cat.png", run / "tokenizer.model", pathlib.Path("/etc/passwd")):
            assert page.request.get(f"{address}/gradio_api/file={path}").status == 403
        browser.close()
    files = list((tmp_path / "made").glob("*.mp4"))
    assert sorted(read_metadata(path)["task"] for path in files) == ["image", "text"]
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert elsewhere == [] and broken == []
