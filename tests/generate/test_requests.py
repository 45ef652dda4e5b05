"""What is said to `sample`: prompts, seeds and outputs, checked before the first step."""

import getpass
import json
import platform
import re

import jax
import numpy as np
import pytest
import tiny_run

from sora_jax.cli.main import main
from sora_jax.core.errors import InputError
from sora_jax.data.media.video import probe, read_clip
from sora_jax.data.tokenizer import train_tokenizer
from sora_jax.generate import sample as command
from sora_jax.generate.output import files as outputs
from sora_jax.generate.output.files import check_outputs, keep_raw_frames, write_video
from sora_jax.generate.output.writer import read_metadata
from sora_jax.generate.prompts import unseen_words
from sora_jax.generate.request import PromptSettings, Request, check_request
from sora_jax.generate.sampling.batches import Batches
from sora_jax.generate.sampling.pipeline import Noise, check_prompts

QUICK = ("--frames=1", "--steps=1")


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)


def make(*flags, out):
    return main(["sample", "--checkpoint=run", f"--out={out}", *QUICK, *flags])


def test_every_seed_of_64_bits_has_noise_of_its_own_and_those_below_32_bits_keep_theirs():
    seeds = [0, 1, 7, 2**32 - 1, 2**32, 2**32 + 7, 2**63, 2**64 - 1]
    keys = [tuple(jax.random.key_data(Noise(seed).key).tolist()) for seed in seeds]
    assert len(set(keys)) == len(seeds)
    for seed, key in zip(seeds[:4], keys[:4], strict=True):
        assert key == tuple(jax.random.key_data(jax.random.key(seed)).tolist())
    for seed in (-1, 2**64):
        with pytest.raises(InputError, match=f"--seed={seed}: must be from 0 to 18446744073709551615"):
            check_request(Request(("a",), seed=seed))


def test_prompts_with_settings_of_their_own_are_parts_and_the_others_keep_their_noise():
    own = (
        PromptSettings(),
        PromptSettings(),
        PromptSettings(seed=5),
        PromptSettings(seed=5),
        PromptSettings(size="8x8"),
    )
    parts = Request(("a", "b", "c", "d", "e"), seed=1, own=own, changes={"frames": 5}).parts()
    found = [(part.prompts, part.seed, part.first, dict(part.changes)) for part in parts]
    assert found == [
        (("a", "b"), 1, 0, {"frames": 5}),
        (("c",), 5, 0, {"frames": 5}),
        (("d",), 5, 0, {"frames": 5}),
        (("e",), 1, 4, {"frames": 5, "size": "8x8"}),
    ]
    assert [part.prompts for part in Request(("a", "b"), own=own[:2]).parts()] == [("a", "b")]


def test_a_prompt_that_is_no_unicode_is_told():
    with pytest.raises(InputError, match=r"--prompt: 'a .*': character 3 is not text"):
        check_prompts(["a \ud83d"])


def test_words_that_a_small_vocabulary_has_never_seen_are_found(tmp_path):
    small = train_tokenizer(["a red circle moves left", "a blue square"], tmp_path / "a.model", vocabulary=400)
    for text, words in {
        "a red square moves left.": [],
        "a red hexagon, circles": ["hexagon", "circles"],
        "Red circle": ["Red"],
        "a bird [/left] 3 times": ["bird", "3", "times"],
    }.items():
        assert unseen_words(small, text) == words


@pytest.mark.parametrize(
    "out, words",
    [
        ("/sys/x.mp4", "--out=/sys/x.mp4: can't be written, "),
        ("x" * 250 + ".mp4", "can't be written, the name is too long; name another place"),
        ("x" * 300 + "/a.mp4", "can't be written, the name is too long"),
        ("folder.mp4", "--out=folder.mp4: is a folder; name a file in it"),
        ("file/a.mp4", "can't be written, a file stands where a folder should be"),
        ("file", "can't be written, a file stands where a folder should be"),
    ],
)
def test_an_output_that_can_not_be_written_is_told_before_the_model_is_loaded(
    tmp_path,
    monkeypatch,
    capsys,
    home,
    out,
    words,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(command, "load_generator", lambda *args, **options: pytest.fail("loaded"))
    assert main(["sample", f"--checkpoint={home}/run", f"--out={out}", "--prompt=a bird"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len([line for line in told if line.startswith("sora-jax")]) == 1 and words in told[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_videos_that_need_more_room_than_there_is_are_told(tmp_path):
    with pytest.raises(
        InputError, match=r"MB are free there, and the videos need about [\d,]+ MB; name another place"
    ):
        check_outputs([tmp_path / "a.mp4"], 16, 10**18)
    check_outputs([tmp_path / "new" / "a.mp4"], 16, 10**6)
    assert (tmp_path / "new").is_dir()


@pytest.fixture
def full(tmp_path):
    """A folder with room for 64 KiB."""
    try:
        disk = tiny_run.Disk(tmp_path / "disk", 2**16)
    except PermissionError as error:
        pytest.skip(str(error))
    yield disk.path
    disk.close()


def noise_frames():
    draw = np.random.default_rng(0)
    for _ in range(8):
        yield draw.integers(0, 256, (4, 64, 96, 3), np.uint8)


def test_a_video_that_does_not_fit_on_the_disk_is_kept_as_raw_frames(full, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs.tempfile, "tempdir", str(tmp_path))
    path, frames = full / "a.mp4", noise_frames()
    reason = write_video(path, frames, 16, {})
    assert reason.startswith(f"{path}: can't be written, the disk is full") and next(frames, None) is None
    assert list(full.glob("*.mp4")) == []
    told = keep_raw_frames(path, noise_frames(), 16)
    (kept,) = tmp_path.glob("*.rgb")
    assert f"-video_size 96x64 -framerate 16 -i {kept} a.mp4" in told
    assert kept.read_bytes() == b"".join(chunk.tobytes() for chunk in noise_frames())


def test_one_failing_prompt_does_not_stop_the_others(home, capsys, monkeypatch):
    """The second video's latents are not finite, so that it can't be decoded."""
    latents = Batches.latents

    def broken(batches, number):
        return np.full_like(latents(batches, number), np.nan if number == 1 else 0)

    monkeypatch.setattr(Batches, "latents", broken)
    prompts = ["--prompt=a bird [/x]", "--prompt=a rabbit", "--prompt=[red]a bird"]
    assert make(*prompts, out="three") == 1
    told = capsys.readouterr().err
    assert "three/000.mp4: a bird [/x]\n" in told and "three/002.mp4: [red]a bird\n" in told
    assert "not made: three/001.mp4: latent frame 0: holds NaN or infinity" in told
    assert told.splitlines()[-1].startswith("sora-jax sample: 1 of 3 videos were not made: three/001.mp4: ")
    assert sorted(path.name for path in (home / "three").glob("*.mp4")) == ["000.mp4", "002.mp4"]


def test_prompts_of_json_lines_make_the_videos_of_their_flags(home, capsys):
    lines = [{"prompt": "a bird", "seed": 2**63, "frames": 1}, {"prompt": "a rabbit", "frames": 5}]
    (home / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert make("--prompts=prompts.jsonl", out="own") == 0
    assert make("--prompt=a bird", f"--seed={2**63}", out="one.mp4") == 0
    shown = [read_clip(probe(home / name), (64, 64), fps=16, frames=1) for name in ("own/000.mp4", "one.mp4")]
    np.testing.assert_array_equal(*shown)
    assert probe(home / "own/001.mp4").frames == 5
    data = [read_metadata(home / f"own/{n:03}.mp4") for n in (0, 1)]
    assert [(one["seed"], one["number"]) for one in data] == [(2**63, 0), (0, 1)]


def test_nothing_of_this_machine_is_in_what_is_written(home):
    picture = home / "picture.png"
    assert make("--prompt=a bird", f"--image={picture}", "--frames=5", out=str(home / "private.mp4")) == 0
    data = read_metadata(home / "private.mp4")
    assert data["image"] == "picture.png" and len(data["input_hashes"]["picture.png"]) == 64
    text = json.dumps(data) + (home / "private.c2pa.json").read_text()
    assert str(home) not in text and str(home).encode() not in (home / "private.mp4").read_bytes()
    assert {platform.node(), getpass.getuser()}.isdisjoint(re.findall(r"[\w.-]+", text))
