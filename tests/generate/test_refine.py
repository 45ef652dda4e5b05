"""Refining: tiles, windows, sizes, rates and sound, by a refiner of random weights or an oracle in its place."""

import dataclasses
import resource

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_refiner
from media_files import write_video

from sora_jax.cli.main import main
from sora_jax.core.errors import InputError
from sora_jax.data.frame_rate import BLENDED, blended
from sora_jax.data.media.resize import AREA, resized
from sora_jax.data.media.video import probe
from sora_jax.evaluate.benchmark import read_video
from sora_jax.generate.output.audio import audio_of
from sora_jax.generate.output.writer import VideoWriter, read_metadata
from sora_jax.generate.refine import refiner as module
from sora_jax.generate.refine.stream import back_projected, refined, sizes_between
from sora_jax.generate.refine.target import target_of
from sora_jax.generate.tasks import Coder
from sora_jax.worlds.shapes.renderer import render, sample_scene


@pytest.fixture(scope="module")
def refiner(tmp_path_factory):
    with jax.set_mesh(tiny.mesh_of()):
        yield tiny_refiner.make_refiner(tmp_path_factory.mktemp("refiner"))


def video(frames=9, side=16, index=2):
    return render(sample_scene(9, index), frames=frames, size=(side, side))


def run(refiner, frames, size=(32, 32), **options):
    return np.concatenate(list(refined(refiner, frames, [size], **options)))


def oracle(settings, params, batch, x, t):
    """The data are the input: what a perfect refiner of a perfect input predicts."""
    stride = settings.autoencoder.temporal_stride
    latents = batch.condition.reshape(*x.shape[:2], 4, -1)
    return latents[..., stride:].reshape(x.shape)


def test_a_perfect_input_comes_back_as_the_autoencoder_has_it(refiner, monkeypatch):
    monkeypatch.setattr(module, "predict_data", oracle)
    truth = video(side=32)
    exact = dataclasses.replace(refiner, noise=0.0)
    made = run(exact, truth, back_projection=0.0)
    generator = refiner.generator
    coder = Coder(generator.autoencoder_params, generator.autoencoder, (2, 2))
    assert np.abs(made.astype(int) - coder.decode(coder.encode(truth))).max() <= 1


def test_tiles_of_a_pointwise_model_have_no_seams(refiner, monkeypatch):
    monkeypatch.setattr(module, "predict_data", lambda settings, params, batch, x, t: jnp.sin(x))
    whole = dataclasses.replace(refiner, tile=(32, 32))
    np.testing.assert_allclose(*(run(r, video()).astype(float) for r in (refiner, whole)), atol=1)


def test_a_constant_picture_has_the_same_latents_in_every_tile(refiner, monkeypatch):
    """Where neither picture nor noise differs, a tile in the middle is as its neighbour."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, *rest, **options: jnp.zeros(shape))
    low = np.ones((5, 16, 16, 4), np.float32)
    window = module.Window(low, np.ones((5, 2), np.float32), low[:0], 5, 0)
    made = module.WindowRefiner(refiner).refine(window)
    # Tiles of 4x4 patches begin every 2 patches: 4 latents further everything repeats.
    np.testing.assert_allclose(made[:, 4:8], made[:, 8:12], atol=1e-5)
    np.testing.assert_allclose(made[:, :, 4:8], made[:, :, 8:12], atol=1e-5)


def test_a_window_with_padding_is_that_of_its_frames_alone(refiner):
    longer = dataclasses.replace(refiner.settings.sample, frames=13)
    generator = dataclasses.replace(
        refiner.generator, settings=dataclasses.replace(refiner.settings, sample=longer)
    )
    low = np.random.default_rng(0).normal(size=(5, 16, 16, 4)).astype(np.float32)
    trust = np.ones((7, 2), np.float32)
    made = []
    for r, beyond in ((refiner, 0), (dataclasses.replace(refiner, generator=generator), 2)):
        padded = np.pad(low, ((0, beyond), (0, 0), (0, 0), (0, 0)))
        window = module.Window(padded, trust[: len(padded)], low[:0], 5, 0)
        made.append((r, window))

    def data_of(r, window):
        windows = module.WindowRefiner(r)
        condition = np.concatenate([np.ones((*window.low.shape[:3], 2), np.float32), window.low], -1)
        tiles = module.Tiles(r, window, condition, windows._text, windows._text_ids)
        return tiles.data(window.low, 0.5)[:5]

    np.testing.assert_allclose(*(data_of(*each) for each in made), atol=1e-5)


def test_tiles_in_groups_are_those_of_one_batch(refiner, monkeypatch):
    at_once = run(refiner, video())
    monkeypatch.setattr(module, "MAX_TOKENS", 2 * 80)
    np.testing.assert_allclose(run(refiner, video()).astype(int), at_once, atol=1)


def test_a_window_begins_with_the_refined_end_of_the_last_one(refiner, monkeypatch):
    seen = []
    refine = module.WindowRefiner.refine

    def spy(self, window):
        made = refine(self, window)
        seen.append((window, made))
        return made

    monkeypatch.setattr(module.WindowRefiner, "refine", spy)
    out = run(refiner, video(20), back_projection=0.0)
    assert len(out) == 20 and len(seen) == 3  # 9, 6 and 5 new frames
    generator = refiner.generator
    coder = Coder(generator.autoencoder_params, generator.autoencoder, (2, 2))
    for (window, made), end in zip(seen[1:], (9, 15), strict=False):
        np.testing.assert_allclose(window.known, coder.encode(out[end - 3 : end]), atol=1e-5)
        np.testing.assert_array_equal(made[: len(window.known)], window.known)


def test_back_projection_gives_the_input_when_made_small_again():
    low, draw = video(3, 16) // 2 + 64, np.random.default_rng(0)  # away from 0 and 255, where values are cut
    made = draw.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8) // 2 + 64
    real = np.array([True, False, True])
    out = back_projected(made, low, real, 1.0)
    before, after = (np.abs(resized(x, (16, 16), AREA).astype(int) - low)[real].mean() for x in (made, out))
    assert after < 2 < before / 10, (before, after)
    assert np.array_equal(out[1], made[1])
    assert np.array_equal(back_projected(made, low, real, 0.0), made)


def test_frames_between_are_blended_but_not_over_a_cut():
    dark, light = (np.full((16, 16, 3), level, np.uint8) for level in (50, 60))
    other = np.full((16, 16, 3), 200, np.uint8)
    made = list(blended([dark, light, other], 2))
    assert [(int(frame[0, 0, 0]), trust) for frame, trust in made] == [
        (50, 1.0), (55, BLENDED), (60, 1.0), (60, BLENDED), (200, 1.0), (200, BLENDED),
    ]  # fmt: skip
    thirds = [int(frame[0, 0, 0]) for frame, _ in blended([dark, light, other], 3)]
    assert thirds == [50, 53, 57, 60, 60, 200, 200, 200, 200]
    assert [trust for _, trust in blended([dark, light], 1)] == [1.0, 1.0]


def test_fast_motion_is_no_cut():
    moving = render(sample_scene(9, 4), frames=17, size=(64, 64))
    frames = [frame for frame, _ in blended(moving[::4], 2)]
    for i in range(1, len(frames) - 2, 2):
        mean = (frames[i - 1].astype(float) + frames[i + 1]) / 2
        assert np.abs(frames[i] - mean).max() <= 1


SOURCE = (48, 64)


@pytest.mark.parametrize(
    "size, rate, words",
    [
        ("32x24", None, "smaller than the video, 64x48; name a size from 64x48 to 256x192"),
        ("640x480", None, "more than 4 times the video, 64x48; name a size from 64x48 to 256x192"),
        ("99999x99999", None, "H.264 holds at most 8192 pixels"),
        ("128x128", None, "of another shape than the video, 64x48; 150x112 has its shape"),
        ("129x97", None, "the nearest even size is 130x98"),
        ("128", None, "write WIDTHxHEIGHT, for example 128x96"),
        ("big", None, "'big' is no size"),
        ("128x96", 25.0, "the video has 16; it can become 16, 32, 48, 64"),
        ("128x96", 8.0, "it can become 16, 32, 48, 64"),
    ],
)
def test_a_size_or_rate_that_can_not_be_reached_names_the_nearest(size, rate, words):
    with pytest.raises(InputError, match=words):
        target_of(SOURCE, 16.0, size, rate, 2.0)


def test_four_times_are_two_passes():
    assert sizes_between((48, 64), (192, 256), 2.0) == [(96, 128), (192, 256)]
    assert sizes_between((48, 64), (72, 96), 2.0) == [(72, 96)]
    assert sizes_between((49, 65), (196, 260), 2.0) == [(98, 130), (196, 260)]
    target = target_of(SOURCE, 16.0, "", 32.0, 2.0)
    assert (target.size, target.factor, target.fps) == ((96, 128), 2, 32.0)


def test_a_single_frame_has_no_rate_to_double():
    with pytest.raises(InputError, match="one frame, and no rate"):
        target_of(SOURCE, 0.0, "", 32.0, 2.0)


def with_sound(path, frames, seconds: float):
    """A video with a tone, its sound in AAC."""
    with av.open(str(path), "w") as container:
        video_stream = container.add_stream("libx264", rate=16)
        video_stream.height, video_stream.width, video_stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        for frame in frames:
            container.mux(video_stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video_stream.encode())
        tone = np.sin(np.arange(int(seconds * 16000)) / 16000 * 2 * np.pi * 440).astype(np.float32)
        for i in range(0, len(tone) - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, i : i + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, i
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def packets_of(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]


def test_sound_is_copied_as_long_as_the_video_is(tmp_path):
    frames = video(32, 32)
    source = with_sound(tmp_path / "a.mp4", frames, 3.0)
    track, note = audio_of(probe(source))
    assert note == ""
    for count in (32, 16):
        path = tmp_path / f"{count}.mp4"
        with VideoWriter(path, 16, audio=track) as writer:
            for frame in frames[:count]:
                writer.write(frame[None])
        copied = packets_of(path)
        assert set(copied) <= set(packets_of(source))
        assert len(copied) * 1024 / 16000 == pytest.approx(count / 16, abs=0.15)


def test_sound_that_mp4_does_not_hold_is_told(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(video(1, 32)[0], format="rgb24")))
        container.mux(stream.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
    track, note = audio_of(probe(tmp_path / "a.mkv"))
    assert track is None and "sound in pcm_s16le is left out; mp4 holds aac" in note


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workdir")
    with jax.set_mesh(tiny.mesh_of()):
        tiny_refiner.write_refiner(folder, tiny_refiner.make_refiner(folder))
    return folder


def test_the_command_makes_a_larger_video_with_more_frames_and_its_sound(workdir, tmp_path, capsys):
    source = with_sound(tmp_path / "a.mp4", video(10, 18), 1.0)  # no multiple of a patch
    out = tmp_path / "b.mp4"
    flags = [f"--checkpoint={workdir}", f"--video={source}", "--size=36x36", "--fps=32"]
    assert main(["refine", *flags, f"--out={out}"]) == 0, capsys.readouterr().err
    made = probe(out)
    assert (made.width, made.height, made.frames) == (36, 36, 20) and made.fps == pytest.approx(32)
    assert packets_of(out)
    about = read_metadata(out)
    assert (about["task"], about["size"], about["fps"]) == ("refine", "36x36", 32.0)
    assert (tmp_path / "b.c2pa.json").exists()


def test_bad_inputs_are_told_in_one_line_and_nothing_is_written(workdir, tmp_path, capsys):
    plain = write_video(tmp_path / "plain.mp4", list(video(3, 32)))
    hdr = tmp_path / "hdr.mp4"
    with av.open(str(hdr), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.color_trc = 16
        container.mux(stream.encode(av.VideoFrame.from_ndarray(video(1, 32)[0], format="rgb24")))
        container.mux(stream.encode())
    out = tmp_path / "made" / "b.mp4"
    for source, more, words in (
        (hdr, [], "is HDR (PQ)"),
        (plain, ["--size=16x16"], "smaller than the video"),
        (plain, ["--noise=2"], "--noise=2: must be from 0 to 1"),
        (plain, ["--strength=0.9"], "trained for times up to 0.65"),
        (tmp_path / "absent.mp4", [], "no such file"),
    ):
        flags = [f"--checkpoint={workdir}", f"--video={source}", f"--out={out}"]
        assert main(["refine", *flags, *more]) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1, told
    assert not out.parent.exists()


def test_a_picture_and_alpha_work(workdir, tmp_path, capsys):
    clear = np.concatenate([video(3, 32), np.zeros((3, 32, 32, 1), np.uint8)], -1)
    source = write_video(tmp_path / "a.mov", list(clear), codec="qtrle", pixel_format="argb")
    flags = [f"--checkpoint={workdir}"]
    assert main(["refine", *flags, f"--video={source}", f"--out={tmp_path}/b.mp4"]) == 0
    assert "with alpha, which is laid over black" in capsys.readouterr().err
    single = write_video(tmp_path / "one.mp4", list(video(1, 32)))
    assert main(["refine", *flags, f"--video={single}", f"--out={tmp_path}/c.mp4"]) == 0
    assert read_video(tmp_path / "c.mp4").shape == (1, 64, 64, 3)


def test_a_model_that_is_no_refiner_is_told(workdir, tmp_path, capsys):
    assert main(["refine", "--video=a.mp4", f"--out={tmp_path}/b.mp4"]) == 2
    assert "has no refiner; train one" in capsys.readouterr().err
    assert main(["sample", f"--checkpoint={workdir}", "--prompt=a", f"--out={tmp_path}/b.mp4"]) == 2
    assert "holds a refiner; `sora-jax refine" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(refiner):
    def peak(frames):
        moving = (np.roll(np.zeros((16, 16, 3), np.uint8) + 90, i, axis=0) for i in range(frames))
        for _ in refined(refiner, moving, [(32, 32)]):
            pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    short = peak(33)
    assert peak(961) - short < 16  # MiB; all frames together have 2.8 of pixels and 3 of latents
