"""`sora-jax sample --task=...`: real files in, mp4 files out, for a transformer that was never trained."""

import dataclasses
import hashlib
import json

import chat_server
import jax
import numpy as np
import pytest
import rich.console
import rich.progress
import tiny

from sora_jax.cli.main import main
from sora_jax.cli.sample import LONG, TASK, WATERMARK
from sora_jax.data.media.video import probe, read_clip
from sora_jax.generate.output.provenance import marked, params_hash
from sora_jax.generate.output.writer import read_metadata
from sora_jax.generate.request import FLAGS, TASKS, TaskInputs
from sora_jax.generate.sampling import long_videos as long
from sora_jax.generate.sampling.sampler import VideoSampler

server = chat_server.server  # that speaks the protocol of chat models


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)


def make(*flags, out="out.mp4"):
    words = [] if any(flag.startswith("--story") for flag in flags) else ["--prompt=a bird"]
    return main(["sample", "--checkpoint=run", f"--out={out}", *words, *flags])


CASES = {
    "text": ([], 9),
    "image": (["--image=picture.png", "--last-image=picture.png"], 9),
    "keyframes": (["--keyframe=0:picture.png", "--keyframe=0.25:tall.mp4"], 9),
    "extend": (["--video=wide.mp4", "--seconds=0.5"], 27 + 8),  # 40 frames at 24 are 27 at 16
    "extend backward": (["--video=tall.mp4", "--seconds=0.7", "--direction=backward"], 11 + 19),
    "loop": ([], 8),
    "loop of a video": (["--video=tall.mp4"], 19 + 4),
    "connect": (["--video=wide.mp4", "--video=tall.mp4", "--seconds=0.2"], 27 + 4 + 19),
    "edit": (["--video=wide.mp4", "--strength=0.5"], 9),
    "inpaint": (["--video=wide.mp4", "--mask=mask.png"], 9),
    "outpaint": (["--video=small.mp4"], 9),
}
QUICK = ("extend",)


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_every_task_makes_a_video_and_says_what_was_done(home, capsys, case):
    flags, frames = CASES[case]
    name = case.split()[0]
    assert make(f"--task={name}", *flags) == 0
    told = "".join(capsys.readouterr())
    video = probe(home / "out.mp4")
    assert (video.frames, video.width, video.height) == (frames, 64, 64)
    metadata = read_metadata(home / "out.mp4")
    assert metadata["task"] == name and metadata["ai_generated"] and len(metadata["checkpoint_hash"]) == 16
    if "--video=wide.mp4" in flags:
        assert "wide.mp4: 128x96, scaled to cover 64x64 and cropped around the centre; 40 frames at 24" in told
    if case == "connect":
        assert "tall.mp4: 64x80, scaled to cover 64x64" in told
    learned = name in ("text", "edit", "loop") and "--video=tall.mp4" not in flags
    assert ("was not trained for it" in told) != learned
    if not learned:
        assert "it was trained for text, first_frame" in told
    manifest = json.loads((home / "out.c2pa.json").read_text())
    labels = {item["label"]: item["data"] for item in manifest["assertions"]}
    assert labels["sora_jax.generation"]["task"] == name
    assert labels["c2pa.hash.data"]["hash"] == hashlib.sha256((home / "out.mp4").read_bytes()).hexdigest()
    given = [flag.split("=", 1)[1].split(":")[-1] for flag in flags if "mp4" in flag or "png" in flag]
    assert sorted(item["title"] for item in manifest["ingredients"]) == sorted(given)
    assert not list(home.glob("*.windows"))


# Windows of 9, 6, 6 and 6 frames; of 5 and then of 2.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "windows"),
    [
        pytest.param((), 4, id="windows"),
        pytest.param(("--rolling",), 11, id="rolling", marks=pytest.mark.exhaustive),
    ],
)
def test_an_interrupted_minute_goes_on_at_its_last_window_bit_for_bit(home, capsys, monkeypatch, more, windows):
    flags = ["--task=text", "--seconds=1.5", "--story=story.txt", "--solver=heun", *more]
    (home / "part.mp4").unlink(missing_ok=True)
    assert make(*flags, out="whole.mp4") == 0
    made, latents = [], VideoSampler.latents

    def counted(sampler, prompts, *args, window=0, **kwargs):
        if window == 2 and stop:
            raise KeyboardInterrupt
        made.append((window, prompts[0]))
        return latents(sampler, prompts, *args, window=window, **kwargs)

    monkeypatch.setattr(VideoSampler, "latents", counted)
    stop = True
    assert make(*flags, out="part.mp4") == 130
    assert made == [(0, "a bird"), (1, "a bird")] and not (home / "part.mp4").exists()
    assert len(list((home / "part.mp4.windows").glob("*.npy"))) == 2
    stop = False
    assert make(*flags, out="part.mp4") == 0
    assert "2 finished windows, going on after them" in "".join(capsys.readouterr())
    assert [number for number, _ in made] == list(range(windows)) and made[-1][1] == "a rabbit"
    assert (home / "part.mp4").read_bytes() == (home / "whole.mp4").read_bytes()
    assert probe(home / "part.mp4").frames == 24 and not (home / "part.mp4.windows").exists()


def test_a_video_goes_on_rolling_and_a_model_that_has_not_learned_it_is_named(home, capsys, monkeypatch):
    done, update = [], rich.progress.Progress.update
    monkeypatch.setattr(
        rich.progress.Progress,
        "update",
        lambda bar, task, completed, total: (
            done.append((completed, total)),
            update(bar, task, completed=completed, total=total),
        ),
    )
    assert make("--task=extend", "--video=wide.mp4", "--seconds=0.5", "--rolling", "--solver=ancestral") == 0
    assert probe(home / "out.mp4").frames == 27 + 8 and read_metadata(home / "out.mp4")["rolling"] is True
    assert "this model was not trained on frames with times of their own" in "".join(capsys.readouterr())
    assert [number for number, _ in done] == list(range(1, len(done) + 1)) and done[-1][1] == len(done)


def test_windows_are_sampled_once_and_those_of_another_request_are_deleted(tmp_path):
    console = rich.console.Console(record=True, width=200)

    def windows(**request):
        return long.SavedWindows(tmp_path / "out.mp4", request, console)

    def never():
        raise AssertionError("made again")

    first = windows(seed=0)
    latents = np.arange(6.0, dtype=np.float32)
    np.testing.assert_array_equal(first.get(3, lambda: latents), latents)
    np.testing.assert_array_equal(windows(seed=0).get(3, never), latents)
    with pytest.raises(AssertionError, match="made again"):
        windows(seed=1).get(3, never)
    told = console.export_text()
    assert "1 finished windows, going on after them" in told and "of another request, deleted" in told
    first.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--task=extnd"], "--task=extnd: did you mean 'extend'?"),
        (["--task=extend", "--seconds=1"], "--video: is needed for --task=extend"),
        (["--task=extend", "--video=wide.mp4", "--seconds=0"], "--seconds=0: must be above 0 and at most 600"),
        (["--task=extend", "--video=wide.mp4", "--seconds=10000"], "--seconds=10000: must be above 0"),
        (["--seconds=nan"], "--seconds=nan: must be above 0"),
        (["--task=extend", "--video=sound.mp3", "--seconds=1"], "sound.mp3: not a known video or picture: text"),
        (["--task=extend", "--video=wide.mp4", "--seconds=1", "--direction=up"], "known: backward, forward"),
        (["--task=connect", "--video=wide.mp4"], "--video: 1 are given, but --task=connect takes 2"),
        (["--task=connect", "--video=wide.mp4", "--video=picture.png"], "1 frames at 16 a second; 3 are needed"),
        (["--task=connect", *["--video=tall.mp4"] * 2, "--seconds=1"], "16 frames between two videos; --frames=9"),
        (["--task=edit", "--video=tall.mp4", "--strength=2"], "--strength=2: must be from 0, the video itself"),
        (["--task=edit", "--video=small.mp4", "--frames=17"], "11 frames at 16 a second; 17 are needed"),
        (["--task=edit", "--video=wde.mp4"], "wde.mp4: no such file, did you mean 'wide.mp4'?"),
        (["--task=inpaint", "--video=tall.mp4", "--mask=mask.png"], "mask.png: 128x96, but tall.mp4 is 64x80"),
        (["--task=inpaint", "--video=wide.mp4", "--mask=white.png"], "white.png: all of it is bright"),
        (["--task=outpaint", "--video=wide.mp4"], "--size=64x64: the video is 128x96; name a larger size"),
        (["--task=keyframes", "--keyframe=1:picture.png"], "--keyframe=1:picture.png: the video ends at 0.5 s"),
        (["--task=keyframes", "--keyframe=picture.png"], "is not SECONDS:FILE, such as 1.5:cat.png"),
        (["--task=text", "--image=picture.png"], "--image: --task=text takes none; it is for image"),
        (["--strength=0.5"], "--strength: --task=text takes none; it is for edit"),
        (["--task=image"], "--image: is needed for --task=image, or --last-image"),
        (["--seconds=1", "--story=absent.txt"], "--story=absent.txt: no such file"),
        (["--seconds=1", "--story=story.txt", "--prompt=a"], "--story: has the prompts; leave out --prompt"),
        (["--story=story.txt"], "--story: is for a long video; name its length, --seconds"),
        (["--rolling"], "--rolling: is for a long video; name its length, --seconds"),
        (["--rolling", "--task=loop"], "--rolling: --task=loop takes none; it is for text, extend"),
        (
            ["--rolling", "--seconds=1", "--solver=unipc"],
            "unipc uses earlier steps; --solver can be euler, heun",
        ),
        (
            ["--rolling", "--seconds=1", "--step-cache-threshold=0.1"],
            "--step-cache-threshold=0.1: --rolling has no step cache",
        ),
        (
            ["--task=extend", "--video=wide.mp4", "--seconds=1", "--direction=backward", "--rolling"],
            "goes forward",
        ),
        (["--expand=http://127.0.0.1:9/v1", "--chat-model=m"], "--expand=http://127.0.0.1:9/v1: can't be reached"),
        (["--expand=http://127.0.0.1:9/v1"], "--chat-model is missing"),
        (["--expand=shapes"], "'a bird': only prompts of the shapes world are expanded by rules"),
        (["--retries=1"], "--retries: is for a chat model; name its address, --expand"),
        (["--seconds=1", "--frames=3"], "--frames=3: --task=text needs at least 5 at once"),
    ],
)
def test_what_does_not_belong_together_is_told_in_one_line(home, capsys, flags, words):
    assert make(*flags, out="wrong.mp4") == 2
    told = [line for line in "".join(capsys.readouterr()).splitlines() if line.startswith("sora-jax")]
    assert len(told) == 1 and words in told[0]
    assert not list(home.glob("wrong*"))


@pytest.mark.slow
def test_a_prompt_is_written_out_shown_used_and_kept(home, server, capsys):
    server.content = "A bird\nthat sings."
    quick, flags = ["--frames=1", "--steps=1"], [f"--expand={server.url}", "--chat-model=painter"]
    assert make(*quick, *flags, out="long.mp4") == 0
    assert "a bird -> A bird that sings." in "".join(capsys.readouterr())
    data = read_metadata(home / "long.mp4")
    assert (data["prompt"], data["asked"]) == ("A bird that sings.", "a bird")
    manifest = json.loads((home / "long.c2pa.json").read_text())
    assert any(item["data"].get("asked") == "a bird" for item in manifest["assertions"])
    first = read_clip(probe(home / "long.mp4"), (64, 64), fps=16, frames=1)
    # The answer is kept, and makes the video that it makes as a prompt.
    assert make(*quick, *flags, out="long.mp4") == 0 and len(server.asked) == 1
    assert main(["sample", "--checkpoint=run", "--out=typed.mp4", "--prompt=A bird that sings.", *quick]) == 0
    for name in ("long.mp4", "typed.mp4"):
        np.testing.assert_array_equal(read_clip(probe(home / name), (64, 64), fps=16, frames=1), first)
    assert make("--seconds=0.6", "--story=story.txt", "--steps=1", *flags, out="story.mp4") == 0
    data = read_metadata(home / "story.mp4")
    assert data["asked"] == ["a bird", "a rabbit"] and data["story"] == ["A bird that sings."] * 2
    # Both are asked at once, and come in either order.
    assert {body["messages"][1]["content"] for _, _, body in server.asked[1:]} == {"a bird", "a rabbit"}
    assert len(server.asked) == 3


@pytest.mark.slow
def test_the_velocity_change_is_measured_once(home, capsys):
    told = []
    for flags in ([], [], ["--step-cache-file=other.json"], ["--step-cache-file=other.json"]):
        assert make("--step-cache-threshold=9", "--steps=5", "--frames=1", *flags, out="quick.mp4") == 0
        told.append("".join(capsys.readouterr()))
        assert "4 of 5 steps are cached" in told[-1]
        assert read_metadata(home / "quick.mp4")["cached_steps"] == [1, 2, 3, 4]
    assert ["is measured once" in text for text in told] == [True, False, True, False]
    assert json.loads((home / "run/velocity_change.json").read_text()) == json.loads(
        (home / "other.json").read_text()
    )


@pytest.mark.slow
def test_the_negative_prompt_changes_the_video(home):
    for flags, out in (([], "without.mp4"), (["--negative-prompt=a rabbit"], "with.mp4")):
        assert make("--frames=1", "--steps=1", *flags, out=out) == 0
    shown = [read_clip(probe(home / name), (64, 64), fps=16, frames=1) for name in ("without.mp4", "with.mp4")]
    assert np.abs(shown[0].astype(int) - shown[1]).max() > 0
    assert read_metadata(home / "with.mp4")["negative_prompt"] == "a rabbit"


def test_every_flag_of_a_request_is_taken_by_a_task():
    fields = {field.name for field in dataclasses.fields(TaskInputs)}
    taken = {key for needed, more in TASKS.values() for key in needed + more}
    assert fields == taken | {"task", "watermark"}
    assert {FLAGS.get(name, name).replace("-", "_") for name in fields} == {
        flag.key for flag in (*TASK, *LONG, WATERMARK)
    }


def test_a_watermark_is_seen_and_changes_nothing_else():
    frames = np.full((2, 64, 96, 3), 100, np.uint8)
    shown = marked(frames, "AI")
    changed = (shown != frames).any(axis=(0, 3))
    rows, columns = np.nonzero(changed)
    assert rows.min() > 48 and columns.min() > 80 and shown.max() > 150
    assert np.array_equal(shown[0], shown[1]) and (frames == 100).all()
    assert marked(frames[:, :16, :16], "AI generated, and much too long").shape == (2, 16, 16, 3)


@pytest.mark.slow
def test_a_watermark_reaches_the_file(home):
    for flags, out in (([], "plain.mp4"), (["--watermark=AI"], "marked.mp4")):
        assert make("--frames=1", "--steps=1", *flags, out=out) == 0
    plain, mark = (
        read_clip(probe(home / name), (64, 64), fps=16, frames=1) for name in ("plain.mp4", "marked.mp4")
    )
    assert np.abs(plain[0, 52:, 48:].astype(int) - mark[0, 52:, 48:]).mean() > 3
    assert read_metadata(home / "marked.mp4")["watermark"] == "AI"


def test_the_hash_of_parameters_changes_with_any_of_them_and_with_no_mesh():
    params = {"a": np.arange(12.0, dtype=np.float32).reshape(4, 3), "b": np.ones(5, np.float32)}
    plain = params_hash(params)
    swapped = params["a"].copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert len({plain, params_hash(params | {"a": swapped}), params_hash(params | {"b": -params["b"]})}) == 3
    with jax.set_mesh(tiny.mesh_of(2, fsdp=2)):
        laid = {
            "a": jax.device_put(params["a"], jax.P(("data", "fsdp"))),
            "b": jax.device_put(params["b"], jax.P()),
        }
        assert params_hash(laid) == plain
