"""`prepare`: real files in, records out; what can't be read is told, what is complete is kept."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from sora_jax.checkpoint.model_folder import save_model
from sora_jax.config.schema import (
    DataSettings,
    MeshSettings,
    Settings,
    TextSettings,
    TransformerSettings,
)
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.data.loader.packing import PackPlan
from sora_jax.data.loader.stream import train_crops, train_sequences
from sora_jax.data.media.video import probe, read_clip
from sora_jax.data.prepare.cut import check_cuts, cut_lengths, fit_size
from sora_jax.data.prepare.encode import ClipEncoder
from sora_jax.data.prepare.prepare import Options, prepare
from sora_jax.data.records.records import Records
from sora_jax.data.tokenizer import Tokenizer
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import bind, init_params
from sora_jax.worlds.shapes.renderer import World, write_world

TINY = tiny.CODER


def settings_of(**data) -> Settings:
    data = {"sizes": ("64x64", "32"), "frames": (17, 5, 1), "batch": 2, **data}
    return Settings(
        data=DataSettings(**data),
        autoencoder=TINY,
        text=TextSettings(vocabulary=600, max_tokens=64),
        transformer=TransformerSettings(channels=4),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> pathlib.Path:
    """Ten videos and pictures of the shapes world."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 10, World(seed=1, sizes=("64x64", "96x64"), lengths=(17, 27, 1)))
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> pathlib.Path:
    """A tiny autoencoder on disk."""
    folder = tmp_path_factory.mktemp("workdir") / "autoencoder"
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        params = jax.jit(lambda: init_params(Autoencoder, TINY, jax.random.key(0)))()
        save_model(folder, Autoencoder, TINY, params)
    return folder


@pytest.fixture(scope="module")
def real(clips, tmp_path_factory) -> Records:
    """The real clips as pixels, at three sizes."""
    out = tmp_path_factory.mktemp("real") / "data"
    settings = settings_of(sizes=("64", "96", "128"), frames=(33, 17, 1))
    report = prepare(settings, clips, out)
    assert (report.sources, report.skipped) == (7, ())
    return Records(out, "pixels")


def every_clip(records):
    return {split: records.clips(split) for split in ("train", "validation") if records.about["clips"][split] > 0}


def test_clips_are_cut_longest_first():
    assert cut_lengths(100, (1, 17, 81)) == [(0, 81), (81, 17), (98, 1)]
    assert cut_lengths(34, (17, 1)) == [(0, 17), (17, 17)]
    assert cut_lengths(1, (17, 1)) == [(0, 1)]
    assert cut_lengths(16, (17,)) == []


def test_sizes_keep_the_aspect_ratio_and_never_enlarge():
    step = {"multiple": (16, 16)}
    assert fit_size("128x64", (720, 1280), **step) == (64, 128)
    assert fit_size("256", (720, 1280), **step) == (192, 336)
    assert fit_size("256", (1280, 720), **step) == (336, 192)
    assert fit_size("480", (360, 640), **step) == (352, 640)  # 360 is no multiple: cropped, not enlarged
    assert fit_size("512", (360, 640), **step) is None
    assert fit_size("640x368", (360, 640), **step) is None or fit_size("640x368", (360, 640), **step) == (368, 640)
    assert fit_size("1280x720", (360, 640), **step) is None
    assert fit_size("64", (64, 64), multiple=(8, 8)) == (64, 64)


def test_cuts_that_the_model_can_not_take_are_told():
    geometry = {"multiple": (16, 32), "stride": 4, "period": 1}
    check_cuts(("64x48", "100"), (81, 17, 1), **geometry)
    for sizes, lengths, reason in [
        (("100x64",), (17,), "100x64 must be multiples of 32x16; the nearest is 96x64"),
        (("12",), (17,), "12 is less than"),
        (("12by3",), (17,), "no size"),
        (("64x64",), (16,), r"16 must be 4 n \+ 1; the nearest are 13 and 17"),
        ((), (17,), "must each name one"),
    ]:
        with pytest.raises(InputError, match=reason):
            check_cuts(sizes, lengths, **geometry)
    with pytest.raises(InputError, match=r"17 must be 8 n \+ 5; the nearest are 13 and 21"):
        check_cuts(("64x64",), (17,), multiple=(16, 16), stride=4, period=2)


def test_records_are_the_pixels_of_the_videos(real, clips):
    for split, lines in every_clip(real).items():
        for index in range(0, len(lines), 11):
            clip = lines[index]
            start, size = round(clip.start * 16), (clip.height, clip.width)
            expected = read_clip(probe(clips / clip.source), size, fps=16.0, frames=clip.frames, start=start)
            assert np.array_equal(real.read(split, index), expected)
            assert clip.shape == expected.shape
            assert clip.end - clip.start == pytest.approx(clip.frames / 16, abs=1e-3)


def test_every_source_is_cut_at_every_size_without_stretching(real, clips):
    sizes = {}
    for lines in every_clip(real).values():
        for clip in lines:
            sizes.setdefault(clip.source, set()).add((clip.height, clip.width))
    assert len(sizes) == 7
    for name, made in sizes.items():
        video = probe(clips / name)
        assert len(made) == 3
        for (height, width), side in zip(sorted(made, key=np.prod), (64, 96, 128), strict=True):
            assert height % 2 == width % 2 == 0
            assert height * width == pytest.approx(side**2, rel=0.1)
            assert width / height == pytest.approx(video.width / video.height, rel=0.06)


def test_rows_of_the_real_clips_are_full(real):
    lines = [clip for clips in every_clip(real).values() for clip in clips]
    patches = np.array([((c.frames - 1) // 4 + 1) * (c.height // 8) * (c.width // 8) for c in lines])
    limits = DataSettings(sequence_length=4096, text_length=1024, clips_per_sequence=32, caption_dropout=0.0)
    plan = PackPlan(patches, [c.tokens for c in lines], limits)
    assert plan.fill > 0.95


def test_every_caption_is_kept_and_counted(real):
    clip = next(c for lines in every_clip(real).values() for c in lines if c.source == "cockatoo.mp4")
    assert clip.captions[0] == "A white cockatoo looks into the camera."
    assert len(clip.captions) == 2
    tokenizer = Tokenizer(real.tokenizer)
    assert clip.tokens == tuple(len(tokenizer.encode(text)) for text in clip.captions)


def test_latents_are_the_encoded_clips(world, autoencoder, tmp_path):
    settings = settings_of(sizes=("32x32",))
    report = prepare(settings, world, tmp_path / "d", Options(autoencoder=autoencoder.parent))
    records = Records(tmp_path / "d", "latents")
    assert report.clips == records.about["clips"]
    encoder = ClipEncoder(records.autoencoder, settings)
    assert encoder.digest == records.about["request"]["autoencoder"]
    shapes = set()
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        params = jax.tree.map(np.asarray, encoder._params)
        whole = jax.jit(lambda video: bind(Autoencoder, TINY, params).encode(video)[0])
        for i, clip in enumerate(records.clips("train")):
            if clip.shape in shapes:
                continue
            shapes.add(clip.shape)
            video = read_clip(
                probe(world / clip.source),
                (clip.height, clip.width),
                fps=16.0,
                frames=clip.frames,
                start=round(clip.start * 16),
            )
            mean = whole(video[None] / np.float32(127.5) - 1)
            expected = (np.asarray(mean[0]) - TINY.latent_mean) / TINY.latent_std
            latents = records.read("train", i)
            assert latents.shape == clip.shape == expected.shape
            np.testing.assert_allclose(latents.astype(np.float32), expected, atol=1e-3, rtol=1e-2)
    assert {shape[0] for shape in shapes} == {1, 3, 9}


def test_training_streams_read_what_was_prepared(world, autoencoder, tmp_path):
    settings = settings_of(
        sizes=("32x32",), frames=(17, 1), sequence_length=2400, crop_frames=17, crop_size="32x32", validation=0.2
    )
    for kind, open_stream in [("pixels", train_crops), ("latents", train_sequences)]:
        out = tmp_path / kind
        prepare(settings, world, out, Options(autoencoder=autoencoder if kind == "latents" else None))
        stream = open_stream(dataclasses.replace(settings, data=dataclasses.replace(settings.data, path=str(out))))
        batch = stream.batch_at(3)
        if kind == "pixels":
            assert batch.shape == (2, 17, 32, 32, 3)
        else:
            assert batch.patches.shape == (2, 2400, 16)
            assert stream.fill > 0.8
            assert np.abs(batch.patches[batch.segment_ids > 0].astype(np.float32)).mean() > 0.1


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_finished_data_set_is_left_as_it_is(world, tmp_path):
    first = prepare(settings_of(), world, tmp_path / "d")
    before = contents(tmp_path / "d")
    again = prepare(settings_of(), world, tmp_path / "d")
    assert contents(tmp_path / "d") == before
    assert again == dataclasses.replace(first, reused=first.shards)
    with pytest.raises(
        InputError, match=r"made of other fps \(16.0, not 8.0\), sizes .*; remove it or name another"
    ):
        prepare(settings_of(fps=8.0, sizes=("32x32",)), world, tmp_path / "d")
    assert contents(tmp_path / "d") == before


def test_files_that_can_not_be_read_are_listed_and_stop_nothing(world, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(world, videos)
    (videos / "captions.jsonl").unlink()
    data = (videos / "000001.mp4").read_bytes()
    (videos / "000001.mp4").write_bytes(data[: len(data) // 2])
    (videos / "000003.mp4").write_bytes(b"")
    (videos / "notes.mp4").write_text("no video at all\n" * 100)
    (videos / "000000.txt").write_text("A shape moves.")
    write_world(tmp_path / "small", 1, World(sizes=("16x16",)))
    shutil.copy(tmp_path / "small/000000.mp4", videos / "small.mp4")
    report = prepare(settings_of(frames=(17, 5)), videos, tmp_path / "d")
    reasons = dict(report.skipped)
    assert set(reasons) == {"000001.mp4", "000003.mp4", "notes.mp4", "small.mp4", "000004.png", "000005.png"}
    assert "no video that FFmpeg can read" in reasons["000001.mp4"]
    assert "0 bytes" in reasons["000003.mp4"]
    assert "16x16 is smaller than every size" in reasons["small.mp4"]
    assert "shortest clip asked for lasts 0.31 s" in reasons["000004.png"]
    assert report.sources == 6
    assert "5 files without a caption" in report.notes
    assert "skipped 6 files:\n  000001.mp4: no video that FFmpeg can read" in str(report)


def test_a_full_disk_keeps_what_is_complete(world, tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "d"
    shutil.copytree(world, videos)
    noise = np.random.default_rng(0).integers(0, 256, (33, 128, 128, 3)).astype(np.uint8)
    program = f"""
import pathlib, resource, signal, sys
sys.path[:0] = {[str(folder) for folder in pathlib.Path(__file__).parents[:2]]!r}
import test_prepare as t
from sora_jax.data.prepare.prepare import prepare as p
from sora_jax.core.errors import InputError
if len(sys.argv) > 1:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    p(t.settings_of(), pathlib.Path({str(videos)!r}), pathlib.Path({str(out)!r}))
except InputError as error:
    print(error)
"""
    from sora_jax.data.media.write import write_clip

    write_clip(videos / "000009.mp4", noise, fps=16.0)  # its shard will be the largest
    run = subprocess.run([sys.executable, "-c", program, "limited"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "File too large" in run.stdout
    assert "what is complete is kept" in run.stdout
    assert len(run.stdout.splitlines()) == 1
    assert not (out / "about.json").exists()
    parts = {path.name: path.read_bytes() for path in (out / ".unfinished").glob("train-*")}
    assert len(parts) >= 2
    moments = {path.name: path.stat().st_ino for path in (out / ".unfinished").glob("train-?????")}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == ""
    shards = {path.stat().st_ino for path in out.glob("*.array_record-*")}
    assert set(moments.values()) <= shards  # the very files: nothing was written twice
    assert not (out / ".unfinished").exists()
    assert {clip.source for lines in every_clip(Records(out, "pixels")).values() for clip in lines} == {
        path.name for path in videos.iterdir() if path.suffix in (".mp4", ".png")
    }


def test_copies_of_a_video_are_on_the_same_side(world, tmp_path):
    for number in range(3):
        shutil.copytree(world, tmp_path / "videos" / str(number))
    prepare(settings_of(validation=0.3, sizes=("32x32",)), tmp_path / "videos", tmp_path / "d")
    sides = {}
    for split, lines in every_clip(Records(tmp_path / "d", "pixels")).items():
        for clip in lines:
            sides.setdefault(clip.source.partition("/")[2], set()).add(split)
    assert len(sides) == 10
    assert all(len(side) == 1 for side in sides.values())
    assert {next(iter(side)) for side in sides.values()} == {"train", "validation"}


def test_of_few_videos_one_is_held_out(world, tmp_path):
    assert prepare(settings_of(validation=0.001), world, tmp_path / "a").clips["validation"] > 0
    assert prepare(settings_of(validation=0.0), world, tmp_path / "b").clips["validation"] == 0


def test_bad_requests_are_told(world, autoencoder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(world / "000000.mp4", bare)
    with pytest.raises(InputError, match=r"no captions; add captions.jsonl"):
        prepare(settings_of(), bare, tmp_path / "d", Options(autoencoder=autoencoder))
    assert prepare(settings_of(), bare, tmp_path / "pixels").clips == {"train": 2, "validation": 0}
    (bare / "000000.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 1 files can be used; 000000.mp4: the file is empty"):
        prepare(settings_of(), bare, tmp_path / "d")
    shutil.copy(world / "000000.mp4", bare)
    prepare(settings_of(), bare, tmp_path / "d")  # nothing of the failed one is in the way
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds other files; name a new folder"):
        prepare(settings_of(), world, tmp_path / "full")
    with pytest.raises(InputError, match="no such folder"):
        prepare(settings_of(), world, tmp_path / "e", Options(autoencoder=tmp_path / "absent"))
    with pytest.raises(InputError, match="no sentencepiece model"):
        prepare(settings_of(), world, tmp_path / "f", Options(tokenizer=world / "captions.jsonl"))
    with pytest.raises(InputError, match="66x64 must be multiples of 4x4"):
        prepare(settings_of(sizes=("66x64",)), world, tmp_path / "g", Options(autoencoder=autoencoder))


def test_a_given_tokenizer_is_kept(world, tmp_path):
    prepare(settings_of(), world, tmp_path / "a")
    given = tmp_path / "a/tokenizer.model"
    prepare(settings_of(), world, tmp_path / "b", Options(tokenizer=given))
    assert (tmp_path / "b/tokenizer.model").read_bytes() == given.read_bytes()
    about = json.loads((tmp_path / "b/about.json").read_text())
    assert about["request"]["tokenizer"] != "at most 600 tokens"


@pytest.mark.slow
def test_killed_at_random_moments_the_data_set_is_the_same():
    script = pathlib.Path(__file__).parent.parent / "reliability/prepare_kills.py"
    run = subprocess.run([sys.executable, script, "--kills=2", "--videos=12"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 kills of 1 process(es)" in run.stdout
    assert "Data sets with a fault: 0" in " ".join(run.stdout.split())
