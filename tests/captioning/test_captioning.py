"""Captions by a chat model: a real server on this machine that speaks the protocol, with its faults."""

import base64
import email.utils
import io
import json
import os
import subprocess
import sys
import time

import chat_server
import numpy as np
import PIL.Image
import pytest
import rich.console
from chat_server import KEY, THREE, answer

from sora_jax.captioning.cache import Cache
from sora_jax.captioning.caption import caption
from sora_jax.captioning.chat import MAX_RETRY_AFTER, Budget, Chat, Endpoint, seconds_of
from sora_jax.captioning.expand import expand
from sora_jax.cli.main import main
from sora_jax.core.errors import InputError
from sora_jax.data.media.write import write_clip
from sora_jax.data.prepare.sources import find_sources
from sora_jax.worlds.shapes.captions import STYLES
from sora_jax.worlds.shapes.captions import caption as say
from sora_jax.worlds.shapes.prompts import expand_by_rules, read_prompt
from sora_jax.worlds.shapes.renderer import BACKGROUNDS, World, sample_scene, write_world

server = chat_server.server


@pytest.fixture
def quiet():
    return rich.console.Console(file=io.StringIO(), width=200)


def chat_with(server, budget=None, **options) -> Chat:
    endpoint = Endpoint(server.url, "painter", **{"key": KEY, "pause": 0.01, "timeout": 0.3, **options})
    return Chat(endpoint, budget)


@pytest.fixture
def folder(tmp_path):
    """Three videos and a picture of one colour each; people have said something about one of them."""
    folder = tmp_path / "videos"
    for i, name in enumerate(["a.mp4", "b.mp4", "sub/c.mp4", "d.png"]):
        frames = np.full((1 if name.endswith("png") else 20, 48, 96, 3), 40 * i + 60, np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_clip(folder / name, frames, fps=10)
    (folder / "b.txt").write_text("people say this")
    return folder


def caption_all(folder, server, out, console, budget=None, parallel=1, **options):
    chat = chat_with(server, budget, **options)
    return caption(folder, out, chat, frames=4, side=64, parallel=parallel, console=console)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# What is asked, and what comes of it -----------------------------------------------------------------------------


def test_clips_are_described_in_three_lengths_that_prepare_takes(server, folder, quiet):
    out = folder.parent / "captions.jsonl"
    done = caption_all(folder, server, out, quiet)
    assert done == {"captioned": 4, "asked": 4, "failed": {}, "left": 0}
    sources = find_sources(folder, out).sources
    assert [source.name for source in sources] == ["a.mp4", "b.mp4", "d.png", "sub/c.mp4"]
    assert sources[0].captions == (THREE["caption"], THREE["short_caption"], THREE["long_caption"])
    assert sources[1].captions[-1] == "people say this"
    assert (folder / "b.txt").read_text() == "people say this"


def test_the_model_is_shown_frames_of_the_clip_in_their_order(server, tmp_path, quiet):
    video = np.zeros((20, 48, 96, 3), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None] * 12
    write_clip(tmp_path / "videos/rising.mp4", video, fps=10)
    caption_all(tmp_path / "videos", server, tmp_path / "out.jsonl", quiet)
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "painter"
    text, *pictures = body["messages"][0]["content"]
    assert "4 frame(s)" in text["text"] and "2.0 seconds" in text["text"]
    means = []
    for part in pictures:
        scheme, data = part["image_url"]["url"].split(",")
        assert scheme == "data:image/jpeg;base64"
        with PIL.Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.size == (64, 32)
            means.append(np.asarray(image).mean())
    assert len(means) == 4 and np.all(np.diff(means) > 40)


def test_what_is_answered_is_not_asked_again(server, folder, quiet):
    out = folder.parent / "captions.jsonl"
    caption_all(folder, server, out, quiet)
    first = out.read_bytes()
    again = caption_all(folder, server, out, quiet)
    assert again["asked"] == 0 and len(server.asked) == 4 and out.read_bytes() == first
    # Another content, or another question, is one.
    write_clip(folder / "a.mp4", np.zeros((20, 48, 96, 3), np.uint8), fps=10)
    assert caption_all(folder, server, out, quiet)["asked"] == 1
    other = chat_with(server)
    done = caption(folder, out, other, frames=2, side=64, parallel=1, console=quiet)
    assert done["asked"] == 4


def test_copies_and_renamed_files_are_asked_about_once(server, folder, quiet):
    (folder / "copy.mp4").write_bytes((folder / "a.mp4").read_bytes())
    done = caption_all(folder, server, folder.parent / "c.jsonl", quiet)
    assert done["captioned"] == 5 and len(server.asked) == 4


def test_a_line_that_was_cut_short_is_asked_for_again(server, folder, quiet):
    out = folder.parent / "captions.jsonl"
    caption_all(folder, server, out, quiet)
    cache = folder.parent / "captions.cache.jsonl"
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-20])
    assert caption_all(folder, server, out, quiet)["asked"] == 1
    assert len(rows(cache)) == 4 and cache.read_bytes() == whole


def test_a_killed_run_goes_on(server, folder, quiet, tmp_path):
    """SIGKILL while the third of four answers is on its way: two are there, two are asked for."""
    out = tmp_path / "captions.jsonl"
    server.faults = [None, None, "slow"]
    code = (
        "import sys, pathlib, rich.console\n"
        "from sora_jax.captioning.caption import caption\n"
        "from sora_jax.captioning.chat import Chat, Endpoint\n"
        "folder, out, url = sys.argv[1:]\n"
        "caption(pathlib.Path(folder), pathlib.Path(out), Chat(Endpoint(url, 'painter', timeout=60)), "
        "frames=4, side=64, parallel=1, console=rich.console.Console())\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code, folder, out, server.url], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(server.asked) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    run.kill()
    run.wait()
    assert len(rows(tmp_path / "captions.cache.jsonl")) == 2 and not out.exists()
    done = caption_all(folder, server, out, quiet)
    assert done["asked"] == 2 and done["captioned"] == 4


def test_two_runs_do_not_write_to_one_cache(server, folder, quiet):
    with (
        Cache(folder.parent / "captions.cache.jsonl"),
        pytest.raises(InputError, match="another run writes to it"),
    ):
        caption_all(folder, server, folder.parent / "captions.jsonl", quiet)


# Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        429, 500, 503, "slow", "cut", "hang up",
        b"{half", b"[]", b'{"choices": []}', b"null",
        answer(""), answer(None), answer("red, all of it"), answer('{"caption": "no other"}'),
        {"error": {"message": "overloaded"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_fault_that_passes_is_asked_again(server, folder, quiet, fault):
    server.faults = [fault, fault]
    done = caption_all(folder, server, folder.parent / "c.jsonl", quiet)
    assert done["captioned"] == 4 and done["failed"] == {} and len(server.asked) == 6


def test_retry_after_is_waited_for(server):
    server.faults = [(429, {"Retry-After": "0.4"})]
    assert chat_with(server).ask([]) == server.content
    assert server.times[1] - server.times[0] >= 0.4


def test_retry_after_may_be_a_number_a_date_or_nonsense():
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 95 < seconds_of(date) <= 100
    read = [seconds_of(text) for text in ("7", "0.5", "-3", "10000000", "soon", "", None)]
    assert read == [7, 0.5, 0, MAX_RETRY_AFTER, None, None, None]


def test_pauses_between_tries_grow(server):
    server.faults = [500] * 4
    chat_with(server, pause=0.04).ask([])
    gaps = np.diff(server.times)
    assert np.all(gaps >= 0.02 * 2 ** np.arange(4)) and gaps[3] > gaps[0]


def test_a_fault_that_stays_leaves_the_clip_out_with_its_reason(server, folder, quiet):
    server.faults = [None, *[500] * 3]
    done = caption_all(folder, server, folder.parent / "c.jsonl", quiet, retries=2)
    assert done["captioned"] == 3 and list(done["failed"]) == ["b.mp4"]
    assert "500 fault 500 of ***; tried 3 times" in done["failed"]["b.mp4"]
    assert "left out: b.mp4" in quiet.file.getvalue()
    assert caption_all(folder, server, folder.parent / "c.jsonl", quiet)["captioned"] == 4


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (answer(None, refusal="I will not look at this."), "refused: I will not look"),
        (answer("...", finish="content_filter"), "refused"),
        (answer('{"caption": "it go', finish="length"), "longer than the server allows"),
        (400, "400 fault"),
        (413, "413 fault"),
    ],
)
def test_what_a_second_try_would_not_mend_is_not_tried_again(server, folder, quiet, fault, reason):
    server.faults = [None, fault]
    done = caption_all(folder, server, folder.parent / "c.jsonl", quiet)
    assert done["captioned"] == 3 and reason in done["failed"]["b.mp4"] and len(server.asked) == 4


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (401, "the key is not accepted: 401 fault 401 of ***"),
        (404, "no model 'painter' there"),
        ((301, {"Location": "https://elsewhere"}), "https://elsewhere"),
        ({"choices": [{"message": {"content": "x"}}]}, "does not say how many an answer took"),
    ],
)
def test_what_is_wrong_with_every_question_stops_the_run(server, folder, quiet, fault, words):
    server.faults = [None, fault]
    out = folder.parent / "c.jsonl"
    with pytest.raises(InputError) as told:
        caption_all(folder, server, out, quiet, budget=Budget(10**6, "tokens"))
    assert words in str(told.value) and KEY not in str(told.value)
    # What was paid for is kept; the next question may have been on its way.
    assert 1 <= len(rows(out)) < len(server.asked) <= 3


def test_a_spent_quota_is_no_reason_to_wait(server):
    server.faults = ["quota"]
    with pytest.raises(InputError, match="nothing is left to pay with: 429 You exceeded"):
        chat_with(server).ask([])
    assert len(server.asked) == 1


def test_no_answer_at_all_stops_after_the_first_few(server, folder, quiet):
    server.faults = [400] * 100
    with pytest.raises(InputError, match="no answer to any of the first 4 questions: 400"):
        caption_all(folder, server, folder.parent / "c.jsonl", quiet)
    assert len(server.asked) == 4


def test_an_address_where_nobody_listens_is_told_at_once(folder, quiet):
    chat = Chat(Endpoint("http://127.0.0.1:9/v1", "painter"))
    start = time.monotonic()
    with pytest.raises(InputError, match="can't be reached"):
        caption(folder, folder.parent / "c.jsonl", chat, frames=4, side=64, parallel=2, console=quiet)
    assert time.monotonic() - start < 5


def test_a_video_that_can_not_be_read_is_left_out(server, folder, quiet):
    (folder / "a.mp4").write_bytes(b"no video")
    done = caption_all(folder, server, folder.parent / "c.jsonl", quiet)
    assert done["captioned"] == 3 and "not a known video or picture" in done["failed"]["a.mp4"]


# Limits ----------------------------------------------------------------------------------------------------------


def test_the_rate_is_kept_by_all_threads_together(server, folder, quiet):
    caption_all(folder, server, folder.parent / "c.jsonl", quiet, parallel=4, rate=240.0)
    assert max(server.times) - min(server.times) > 0.4  # 0.75 s, less what the first may be late


def test_so_many_are_on_their_way_at_a_time(server, folder, quiet):
    server.faults = ["pause"] * 4
    caption_all(folder, server, folder.parent / "c.jsonl", quiet, parallel=2)
    assert server.most_active == 2


@pytest.mark.parametrize(("budget", "there"), [("3requests", 3), ("150 tokens", 2)])
def test_a_budget_stops_cleanly_and_the_next_run_goes_on(server, folder, quiet, budget, there):
    out = folder.parent / "c.jsonl"
    done = caption_all(folder, server, out, quiet, budget=Budget.read(budget))
    assert done["captioned"] == there == len(server.asked) and done["left"] == 4 - there
    assert f"is spent; {4 - there} videos are left" in quiet.file.getvalue()
    assert len(find_sources(folder, out).sources) == there
    assert caption_all(folder, server, out, quiet)["captioned"] == 4 and len(server.asked) == 4


def test_tries_that_fail_count_for_the_budget(server, folder, quiet):
    server.faults = [None, 500, 500]
    done = caption_all(folder, server, folder.parent / "c.jsonl", quiet, budget=Budget(3, "requests"))
    assert len(server.asked) == 3 and done["captioned"] == 1 and done["left"] == 3


# Prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_expanded_in_their_order(server, quiet):
    server.content = '"A cat,\nwhich sleeps."'
    made = expand(["a cat", "a dog"], chat_with(server), parallel=1, console=quiet)
    assert made == ["A cat, which sleeps."] * 2
    assert [body["messages"][1]["content"] for _, _, body in server.asked] == ["a cat", "a dog"]
    server.faults = [None, 400]
    assert expand(["a cat", "a dog"], chat_with(server), parallel=1, console=quiet) == [made[0], "a dog"]
    assert "not expanded: a dog: 400" in quiet.file.getvalue()


def test_every_caption_of_the_shapes_world_is_understood():
    for i in range(300):
        scene = sample_scene(21, i, held_out=i % 2 == 0)
        for style in STYLES:
            text = say(scene, style, moving=True, bounced=[i % 3 == 0] * len(scene.things))
            things, background = read_prompt(text)
            assert background == scene.background, text
            assert len(things) == len(scene.things), text
            for thing, said in zip(scene.things, things, strict=True):
                assert {name: getattr(thing, name) for name in said} == said, text
                assert {"shape", "colour", "motion"} <= set(said), text
                assert style != "long" or thing.motion == "still" or "speed" in said, text


def test_the_rules_keep_what_is_asked_and_add_the_rest():
    for prompt in ("a circle", "red square on a white background", "a big triangle rising up and a blue circle"):
        made = expand_by_rules(prompt)
        asked, background = read_prompt(prompt)
        things, where = read_prompt(made)
        assert all(wanted.items() <= got.items() for wanted, got in zip(asked, things, strict=True))
        assert {"colour", "size", "motion"} <= set(things[0]) and where in BACKGROUNDS
        assert background in (None, where) and expand_by_rules(prompt) == made
    with pytest.raises(InputError, match="prompts of the shapes world"):
        expand_by_rules("a cat on a mat")


def test_prepare_takes_the_three_captions_of_the_shapes_world(tmp_path):
    write_world(tmp_path, 3, World(lengths=(5, 1)))
    for i, source in enumerate(find_sources(tmp_path).sources):
        scene = sample_scene(0, i)
        said = [say(scene, style, moving=i != 1, bounced=[False] * len(scene.things)) for style in STYLES]
        assert source.captions == tuple(said)


# The command -----------------------------------------------------------------------------------------------------


def test_the_command_captions_and_expands(server, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    flags = [f"--endpoint={server.url}", "--chat-model=painter", "--key-variable=MY_KEY"]
    out = tmp_path / "c.jsonl"
    assert main(["caption", f"--videos={folder}", f"--out={out}", *flags, "--frames=2"]) == 0
    assert len(find_sources(folder, out).sources) == 4
    told = capsys.readouterr().err
    assert "4 of 4 videos, 4 requests, 400 tokens" in told
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    server.content = "A long prompt."
    assert main(["caption", f"--prompts={tmp_path}/prompts.txt", f"--out={tmp_path}/long.txt", *flags]) == 0
    assert (tmp_path / "long.txt").read_text() == "A long prompt.\n" * 2
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    assert (
        main(["caption", f"--prompts={tmp_path}/prompts.txt", f"--out={tmp_path}/s.txt", "--endpoint=shapes"]) == 0
    )
    assert (tmp_path / "s.txt").read_text() == expand_by_rules("a red circle") + "\n"
    kept = "".join(path.read_text() for path in tmp_path.glob("*.jsonl")) + told
    assert KEY not in kept


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out=c.jsonl", "--endpoint=shapes"], "--videos, a folder to describe, or --prompts"),
        (["--videos=videos"], "--out is missing"),
        (["--videos=videos", "--out=c.jsonl"], "--endpoint is missing"),
        (["--videos=videos", "--out=c.jsonl", "--endpoint=shapes"], "can't see videos"),
        (["--videos=videos", "--out=c.jsonl", "--endpoint=http://x"], "--chat-model is missing"),
        (["--videos=videos", "--out=c.csv", "--endpoint=http://x", "--chat-model=m"], "written as .jsonl"),
        (
            ["--videos=videos", "--out=videos/captions.jsonl", "--endpoint=http://x", "--chat-model=m"],
            "people's captions",
        ),
        (["--videos=videos", "--out=c.jsonl", "--endpoint=x", "--chat-model=m"], "can't be asked"),
        (
            ["--videos=videos", "--out=c.jsonl", "--endpoint=http://x", "--chat-model=m", "--budget=5"],
            "with its unit",
        ),
        (["--videos=video", "--out=c.jsonl", "--endpoint=http://x", "--chat-model=m"], "did you mean 'videos'?"),
        (["--prompts=none.txt", "--out=c.txt", "--endpoint=shapes"], "no such file"),
        (["--videos=videos", "--out=c.jsonl", "--rate=-1"], "--rate=-1"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(folder.parent)
    assert main(["caption", *flags]) == 2
    _, err = capsys.readouterr()
    assert words in err.splitlines()[-1] and "Traceback" not in err
    assert not (folder.parent / "c.jsonl").exists() and not os.path.lexists(folder / "captions.jsonl")
