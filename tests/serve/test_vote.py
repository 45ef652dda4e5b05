"""The page of `evaluate --vote`: what it tells, and votes in a headless browser."""

import asyncio
import collections
import dataclasses
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import rich.console
from test_evaluate import QUIET, Model, asked, checkpoint
from test_serve import CHROMIUM, ask

from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.data.media.write import write_clip
from sora_jax.evaluate.benchmark import Options
from sora_jax.evaluate.subjects import open_subjects
from sora_jax.evaluate.vote_videos import videos_to_vote_on
from sora_jax.evaluate.votes import read_votes
from sora_jax.serve.request_filter import RequestFilter
from sora_jax.serve.vote import Ballot, VotingSession, make_pairs, make_vote_app, report_votes
from sora_jax.worlds.shapes.renderer import render, sample_scene

PROMPTS = ("a red circle moves right", "a <b>blue</b> square", "a green triangle")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos of two subjects, those of the second a little longer."""
    folder, found = tmp_path_factory.mktemp("videos"), {}
    for subject, frames in (("first", 17), ("second", 21)):
        found[subject] = []
        for number, prompt in enumerate(PROMPTS):
            path = folder / subject / f"{number}.mp4"
            write_clip(path, render(sample_scene(3, number), frames=frames, size=(96, 160)), fps=16.0)
            found[subject].append((prompt, path))
    return found


@pytest.fixture
def session(videos, tmp_path):
    return VotingSession(make_pairs(videos), tmp_path / "votes.jsonl")


def test_every_pair_is_shown_once_to_each_voter_on_sides_drawn_at_random(session):
    sides = collections.Counter()
    for voter in range(40):
        prompts = []
        while (shown := session.next(str(voter)))["pair"]:
            assert shown["done"] == len(prompts) and shown["total"] == 3
            session.vote(Ballot(voter=str(voter), pair=shown["pair"], choice="left"))
            prompts.append(shown["prompt"])
        assert sorted(prompts) == sorted(PROMPTS)
    for vote in read_votes(session.path):
        sides[vote.left] += 1
        assert {vote.left, vote.right} == {"first", "second"} and vote.choice == "left"
    assert sum(sides.values()) == 120 and 35 < sides["first"] < 85  # 4.5 deviations


def test_a_pair_can_be_gone_back_to_and_the_least_seen_come_first(session):
    first = session.next("ann")
    session.vote(Ballot(voter="ann", pair=first["pair"], choice="left"))
    assert session.next("bo")["prompt"] != first["prompt"]
    again = session.next("ann", first["pair"])
    assert {key: again[key] for key in ("pair", "prompt", "left")} == {
        key: first[key] for key in ("pair", "prompt", "left")
    }
    session.vote(Ballot(voter="ann", pair=again["pair"], choice="tie"))
    assert [vote.choice for vote in read_votes(session.path)] == ["tie"] and session.next("ann")["done"] == 1


def answer(app, method, path, body=b"", query=b""):
    """(status, body) of the application's answer."""
    sent = []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "root_path": "",
        "scheme": "http",
    }
    scope |= {"headers": [(b"host", b"127.0.0.1"), (b"content-length", str(len(body)).encode())]}
    scope["headers"].append((b"content-type", b"application/json"))

    told = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return told.pop() if told else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_the_server_tells_no_names_and_takes_no_other_votes(session, videos, tmp_path):
    app = RequestFilter(make_vote_app(session), host="127.0.0.1", max_body=2**20)
    told = answer(app, "GET", "/next", query=b"voter=ann")[1]
    assert b"first" not in told and b"second" not in told
    shown = json.loads(told)
    files = {answer(app, "GET", f"/{shown[side]}")[1] for side in ("left", "right")}
    number = PROMPTS.index(shown["prompt"])
    assert files == {videos[name][number][1].read_bytes() for name in videos}
    assert answer(app, "GET", "/video/00000 first second-left.mp4")[0] == 404
    for path in ("/video/..%2f..%2fvotes.mp4", "/docs", "/votes.jsonl"):
        assert answer(app, "GET", path)[0] == 404

    def vote(**changes):
        ballot = {"voter": "ann", "pair": shown["pair"], "choice": "left"} | changes
        return answer(app, "POST", "/vote", json.dumps(ballot).encode())[0]

    assert vote(choice="first") == vote(voter="") == vote(voter="x" * 65) == 422
    assert vote(pair="00000 first second") == 404 and not session.path.exists()
    assert vote() == 200 and len(read_votes(session.path)) == 1
    # The guards of `serve`.
    assert ask(app, "POST", "/vote", b"{}", origin="http://evil.example")[0] == 403
    assert ask(app, "GET", "/", host="evil.example")[0] == 403
    assert ask(app, "POST", "/vote", b"x" * 2**21)[0] == 413


def test_the_report_is_printed_and_written(session, tmp_path):
    told = io.StringIO()
    console = rich.console.Console(file=told, width=200)
    report_votes([], tmp_path, console)
    assert "no votes yet" in told.getvalue() and not (tmp_path / "votes.html").exists()
    for _ in PROMPTS:
        session.vote(Ballot(voter="ann", pair=session.next("ann")["pair"], choice="tie"))
    report_votes(read_votes(session.path), tmp_path, console)
    assert "3 votes of 1 voters on 3 prompts" in told.getvalue()
    page = (tmp_path / "votes.html").read_text()
    assert "Bradley-Terry" in page and "first wins" in page


def test_what_can_not_be_compared_is_told_in_a_line(videos, tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match="needs two checkpoints"):
        make_pairs({"first": videos["first"]})
    with pytest.raises(InputError, match="first and second have not videos of the same prompts"):
        make_pairs(videos | {"second": videos["second"][:2]})
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--vote"]) == 2
    assert "--vote: needs two checkpoints or more" in capsys.readouterr().err


def test_checkpoints_make_videos_of_the_same_prompts_once(tmp_path):
    folders = [checkpoint(tmp_path / name, step=n) for n, name in enumerate(("a", "b"), 1)]
    model = Model(asked)
    options = Options(prompts=PROMPTS, frames=(5,), sizes=("64x64",), sampler=model)
    wishes = {"options": options, "mesh": MeshSettings(8), "console": QUIET}
    subjects = open_subjects([str(folder) for folder in folders], (), "", tmp_path / "out")
    found = [videos_to_vote_on(subjects, **wishes) for _ in range(2)]
    assert found[0] == found[1] and model.made == [0, 1, 2] * 2
    pairs = make_pairs(found[0])
    assert [pair.prompt for pair in pairs] == list(PROMPTS)
    folders = {subject.name: subject.out for subject in subjects}
    videos = [found for pair in pairs for found in pair.videos.items()]
    assert all(path.is_file() and folders[name] in path.parents for name, path in videos)
    wishes["options"] = dataclasses.replace(options, sizes=("64x64", "96x64"))
    with pytest.raises(InputError, match="takes one size"):
        videos_to_vote_on(subjects, **wishes)


@pytest.mark.slow
def test_votes_in_a_browser(videos, tmp_path):
    """Keys, buttons, back, a phone's width; both videos play in step; Ctrl-C reports."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs sora_jax[ci]: playwright")
    if not CHROMIUM.exists() and not shutil.which("chromium"):
        pytest.skip("needs Chromium, on Debian: apt install chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        "import pathlib, rich.console\n"
        "from sora_jax.serve.vote import make_pairs, serve_votes\n"
        f"videos = {videos!r}\n".replace("PosixPath", "pathlib.Path")
        + f"serve_votes(make_pairs(videos), pathlib.Path({str(tmp_path)!r}), address=('127.0.0.1', {port}),\n"
        "            console=rich.console.Console(width=200))\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    wait_until_up(port, server)
    broken, see = [], os.environ.get("SORA_JAX_SCREENSHOTS")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium") or str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.on("pageerror", lambda error: broken.append(str(error)))

        def shoot(name):
            if see:
                page.screenshot(path=f"{see}/{name}.png")

        def at(done):
            page.get_by_text(f"{done} of 3", exact=True).wait_for(timeout=20_000)
            page.wait_for_function("() => !busy")  # until then the page takes no vote
            assert page.locator("#prompt").inner_text() in PROMPTS  # as text, whatever it looks like
            page.wait_for_function("() => [...document.querySelectorAll('video')].every(v => v.currentTime > 0)")

        page.goto(f"http://127.0.0.1:{port}")
        shoot("vote-start")
        page.get_by_label("Your name").fill("ann")
        page.keyboard.press("Enter")
        at(0)
        shoot("vote")
        apart = "() => { const [a, b] = document.querySelectorAll('video'); return a.currentTime - b.currentTime }"
        page.wait_for_timeout(600)
        assert abs(page.evaluate(apart)) < 0.15
        page.keyboard.press("ArrowLeft")
        at(1)
        page.keyboard.press("z")
        page.wait_for_function("() => !busy")
        page.get_by_text("1 of 3", exact=True).wait_for()
        page.keyboard.press("ArrowDown")
        at(1)
        page.set_viewport_size({"width": 390, "height": 780})
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
        shoot("vote-phone")
        assert page.get_by_role("button", name="Right").count() == 0  # they lie one above the other
        page.get_by_role("button", name="Lower").click()
        at(2)
        page.get_by_role("button", name="Equal").click()
        page.get_by_text("3 of 3 pairs are voted on.").wait_for()
        shoot("vote-done")
        browser.close()
    server.send_signal(signal.SIGINT)
    told, _ = server.communicate(timeout=60)
    assert "first wins" in told and "3 votes of 1 voters on 3 prompts" in told and server.returncode == 0
    assert sorted(vote.choice for vote in read_votes(tmp_path / "votes.jsonl")) == ["right", "tie", "tie"]
    assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == 4 and broken == []


def wait_until_up(port: int, server: subprocess.Popen):
    end = time.monotonic() + 120
    while True:
        assert server.poll() is None and time.monotonic() < end
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
