"""Tasks with the autoencoder that ships, and a transformer that was never trained or an oracle in its place."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sora_jax.checkpoint.manager import save_weights
from sora_jax.checkpoint.model_folder import load_settings
from sora_jax.config.schema import AutoencoderSettings
from sora_jax.core.errors import InputError
from sora_jax.core.patches import patchify, unpatchify
from sora_jax.core.storage import copy_files
from sora_jax.data.tokenizer import train_tokenizer
from sora_jax.diffusion.conditioning import on_loop, start_from
from sora_jax.diffusion.flow import times_at
from sora_jax.diffusion.solvers import time_grid, unipc
from sora_jax.generate import tasks
from sora_jax.generate.generator import load_generator
from sora_jax.generate.sampling import long_videos as long
from sora_jax.generate.sampling.clips import Clip, Noise, make_batch, noise_of, one_a_row
from sora_jax.generate.sampling.pipeline import SOLVERS, sample_latents
from sora_jax.generate.sampling.rolling import RollingWindow, rolling_schedule, sample_rolling_latents
from sora_jax.generate.sampling.steps import StepInputs, StepProgram, begin, solver_step
from sora_jax.models.layers.params import abstract_params
from sora_jax.models.video_model import VideoModel
from sora_jax.worlds.shapes import SHIPPED_AUTOENCODER
from sora_jax.worlds.shapes.renderer import render, sample_scene

FRAMES = 9  # that the model sees at once: 5 latents


def settings_of(**masks):
    autoencoder = load_settings(SHIPPED_AUTOENCODER, AutoencoderSettings)
    settings = tiny.change(
        tiny.SETTINGS,
        text={"vocabulary": 400},
        transformer={"channels": 64, "layers": 1},
        autoencoder=vars(autoencoder),
        masks=masks,
        sample={"size": "64x64", "frames": FRAMES, "steps": 2, "guidance": 2.0},
    )
    return settings


def write_run(folder, **masks):
    """A workdir to sample from, with random weights."""
    settings = settings_of(**masks)
    with jax.set_mesh(tiny.mesh_of()):
        shapes = abstract_params(VideoModel, settings)
        draw = np.random.default_rng(0)
        params = jax.tree.map(lambda x: jnp.asarray(draw.normal(0, 0.1, x.shape), jnp.float32), shapes)
        save_weights(folder, params, settings)
    copy_files(SHIPPED_AUTOENCODER, folder / "autoencoder")
    train_tokenizer(["a rabbit", "a bird"], folder / "tokenizer.model", vocabulary=400)
    return folder


class Film:
    """An input video from an array."""

    def __init__(self, frames):
        self._frames, self.frames = frames, len(frames)

    def read(self, start=0, frames=None):
        return iter(self._frames[start : None if frames is None else start + frames])


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    with jax.set_mesh(tiny.mesh_of()):
        yield load_generator(write_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def coder(generator):
    return tasks.coder_of(generator)


@functools.cache
def clip(index=2, frames=41):
    return render(sample_scene(9, index), frames=frames, size=(64, 64))


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean(np.square(a.astype(float) - b.astype(float))))


def shown(generator, task, made):
    chunks = tasks.render(generator.autoencoder_params, generator.autoencoder, task.parts(made))
    return np.concatenate(list(chunks))


def run(generator, task, seed=0):
    sample = dataclasses.replace(generator.settings.sample, frames=task.frames)
    made = sample_latents(
        generator, ["a bird"], sample, Noise(seed), conditioning=task.conditioning, loop=task.loop
    )[0]
    return made, shown(generator, task, made)


def assert_comes_back(coder, given, got):
    """As well as the autoencoder alone shows it, within 0.5 dB."""
    alone = coder.decode(coder.encode(given))
    assert psnr(got, given) >= psnr(alone, given) - 0.5


def test_given_pictures_come_back(generator, coder):
    first, middle, last = (clip(index)[:1] for index in (1, 2, 3))
    _, video = run(generator, tasks.keyframes(coder, FRAMES, {0: first[0], 3: middle[0], 8: last[0]}))
    assert len(video) == FRAMES
    for number, picture in ((0, first), (3, middle), (8, last)):
        assert_comes_back(coder, picture, video[number : number + 1])
    assert psnr(video[5], middle[0]) < 20


@pytest.mark.parametrize("close", [False, True])
def test_connected_videos_come_back_on_both_sides_of_what_is_made(generator, coder, close):
    one, two = clip(4, 12), clip(5, 10)
    task = tasks.connect(coder, FRAMES, Film(one), Film(two), 2, close=close)
    _, video = run(generator, task)
    assert_comes_back(coder, one[1:], video[:11])  # 2 n + 1 frames of 12 and of 10
    assert len(video) == 11 + 4 + (0 if close else 9)
    if not close:
        assert_comes_back(coder, two[:9], video[15:])


def test_what_is_not_painted_comes_back(generator, coder):
    known = np.ones((64, 64), bool)
    known[16:37, 20:50] = False
    video = clip(6)[:FRAMES]
    task = tasks.inpaint(coder, video, known)
    assert task.conditioning.conditioning_mask.sum() == 5 * (
        16 - 2 * 3
    )  # patches of 16 x 16 with no pixel of the region
    _, made = run(generator, task)
    assert_comes_back(coder, video, np.where(known[..., None], made, coder.decode(coder.encode(video))))
    assert psnr(made[:, ~known], video[:, ~known]) < 20


def test_a_video_comes_back_inside_the_canvas_around_it(generator, coder):
    small = clip(7)[:FRAMES, 10:42, 8:56]
    canvas, known = tasks.on_canvas(coder, small, (64, 64))
    assert np.array_equal(canvas[:, known].reshape(small.shape), small)
    assert known[16:48].any(axis=1).all() and known.sum() == 32 * 48
    task = tasks.inpaint(coder, canvas, known)
    _, made = run(generator, task)
    own = coder.decode(coder.encode(canvas))
    assert psnr(made[:, known], canvas[:, known]) >= psnr(own[:, known], canvas[:, known]) - 0.5
    for wrong, size in ((small, (16, 64)), (canvas, (64, 64))):
        with pytest.raises(InputError, match="name a larger size to paint around it"):
            tasks.on_canvas(coder, wrong, size)


def test_an_edit_of_strength_0_is_the_video_and_of_strength_1_another(generator, coder):
    video = clip(8)[:FRAMES]
    _, same = run(generator, tasks.edit(coder, video, 0.0))
    np.testing.assert_array_equal(same, coder.decode(coder.encode(video)))
    made, _ = run(generator, tasks.edit(coder, video, 1.0))
    from_text, _ = run(generator, tasks.Task(FRAMES))
    np.testing.assert_array_equal(made, from_text)
    distances = [
        np.abs(run(generator, tasks.edit(coder, video, strength))[0] - coder.encode(video)).mean()
        for strength in (0.25, 0.5, 0.75)
    ]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_a_solver_starts_at_the_time_asked_for_and_known_patches_at_their_own(one_device):
    batch = tiny.random_batch(0)
    batch.conditioning_mask[:, :3] = True
    batch = tiny.on_mesh(batch)
    noise = jax.random.normal(jax.random.key(0), batch.patches.shape)
    start = start_from(noise, batch, time=0.75, conditioning_time=0.125)
    np.testing.assert_allclose(start[:, :3], 0.875 * batch.patches[:, :3] + 0.125 * noise[:, :3], rtol=1e-6)
    np.testing.assert_allclose(start[:, 3:], 0.25 * batch.patches[:, 3:] + 0.75 * noise[:, 3:], rtol=1e-6)
    np.testing.assert_array_equal(start_from(noise, batch)[:, 3:], noise[:, 3:])


def looped_video():
    """A video of 16 frames without a beginning: a picture that swings."""
    return np.stack([np.roll(clip(8)[0], round(6 * np.sin(np.pi * i / 8)), axis=1) for i in range(16)])


def test_a_loop_has_no_seam(coder):
    video = looped_video()
    thrice = coder.encode(np.concatenate([*[video] * 3, video[:1]]))
    loop = thrice[9:17]  # of frames 17 to 32, the second time round
    grid = (9, 4, 4)
    star = patchify(np.concatenate([np.zeros_like(loop[:1]), loop]), (1, 2, 2))[None]
    frames = star.reshape(1, 9, 16, -1)[:, 1:]
    seams = set()

    def oracle(turn):
        turned = np.roll(frames, -turn, axis=1)
        wanted = np.concatenate([turned[:, -1:], turned], axis=1).reshape(star.shape)

        def velocity(x, t):
            # What the model sees before the first frame is the one before it, as noisy as that.
            seen = x.reshape(frames.shape[0], 9, 16, -1)
            np.testing.assert_array_equal(seen[:, 0], seen[:, -1])
            return (x - wanted) / t

        return velocity

    times = time_grid(8, 2.0)
    state = unipc.start(jax.random.normal(jax.random.key(0), star.shape), None)
    for i in range(8):
        turn = (5 * i) % 8
        seams.add(turn)
        state = unipc.step(on_loop(oracle(turn), grid[0], turn), state, times, i)
    assert seams == set(range(8))
    found = np.asarray(state[0]).reshape(1, 9, 16, -1)[:, 1:]
    np.testing.assert_allclose(found, frames, atol=1e-4)
    made = unpatchify(np.asarray(state[0])[0], grid, (1, 2, 2))
    task = tasks.loop(coder, 17)
    chunks = tasks.render(coder.params, coder.settings, task.parts(made))
    looped = np.concatenate(list(chunks))
    assert looped.shape == video.shape
    wanted = np.roll(video, -1, axis=0)
    assert psnr(looped, wanted) > psnr(coder.decode(thrice)[17:33], wanted) - 0.1
    steps = [np.abs(looped[i].astype(float) - looped[i - 1]).mean() for i in range(16)]  # the first: over the seam
    assert steps[0] < 1.2 * steps[8]  # where the picture moves as far
    # Decoded from its beginning alone, as any other video is, it has one.
    plain = coder.decode(np.asarray(made)[1:])
    assert psnr(plain[:3], wanted[1:4]) < psnr(looped[1:4], wanted[1:4]) - 3


def test_a_loop_is_made_by_the_model(generator, coder):
    task = tasks.loop(coder, FRAMES)
    made, video = run(generator, task)
    assert len(video) == FRAMES - 1 and np.isfinite(made[1:]).all()
    plain, _ = run(generator, tasks.Task(FRAMES))
    assert np.abs(made[1:] - plain[1:]).max() > 1e-3


@pytest.fixture(scope="module")
def truth():
    return clip(8, 41)


def windows_of(coder, truth, begins):
    """(a sampler of a perfect model's windows, which begin at these frames; what each window was given)."""
    seen = []

    def make(number, share, give, rest):
        given = give()
        latents = coder.encode(truth[begins[number] : begins[number] + FRAMES])
        seen.append((share, None if given is None else given.conditioning_mask[:, 0, 0].tolist()))
        if given is not None:
            held = given.conditioning_mask.any(axis=(1, 2))
            assert np.abs(given.latents[held] - latents[held]).mean() < 0.2 * np.abs(latents[held]).mean()
            latents = np.where(held[:, None, None, None], given.latents, latents)
        return latents

    return make, seen


def assert_no_seam(coder, truth, video, seams):
    alone = coder.decode(coder.encode(truth[: (len(video) - 1) // 2 * 2 + 1]))
    for seam in seams:
        near = slice(seam, seam + 2)
        assert psnr(video[near], truth[near]) > psnr(alone[near], truth[near]) - 1.5
    assert psnr(video, truth[: len(video)]) > psnr(alone, truth[: len(alone)]) - 0.5


def test_a_video_goes_on_window_after_window_without_a_seam(coder, truth):
    make, seen = windows_of(coder, truth, [14, 20, 26])
    video = np.concatenate(list(long.forward(coder, make, FRAMES, 15, Film(truth[:17]))))
    assert len(video) == 17 + 15
    assert [known for _, known in seen] == [[True, True, False, False, False]] * 3
    np.testing.assert_allclose([share for share, _ in seen], [0, 6 / 15, 12 / 15])
    assert_comes_back(coder, truth[:17], video[:17])
    assert_no_seam(coder, truth, video, [17, 23, 29])


def test_a_long_video_begins_from_text_alone(coder, truth):
    make, seen = windows_of(coder, truth, [0, 6, 12])
    video = np.concatenate(list(long.forward(coder, make, FRAMES, 20)))
    assert len(video) == 20 and seen[0] == (0, None)
    assert_no_seam(coder, truth, video, [9, 15])


def test_a_video_goes_back_window_after_window_without_a_seam(coder, truth):
    # Each window makes its first three latents, 5 frames: they end where what is known begins.
    make, seen = windows_of(coder, truth, [12, 7, 2])
    saved = {}

    def kept(number, share, give, rest):
        if number not in saved:
            saved[number] = make(number, share, give, rest)
        return saved[number]

    video = np.concatenate(list(long.backward(coder, kept, FRAMES, 14, Film(truth[17:34]))))
    assert len(video) == 14 + 17 and len(seen) == 3
    assert [known for _, known in seen] == [[False, False, False, True, True]] * 3
    assert_comes_back(coder, truth[17:34], video[14:])
    assert_no_seam(coder, truth[3:], video, [4, 9, 14])


def test_frames_of_a_rolling_window_lie_a_lag_apart():
    schedule = rolling_schedule(5, 2, 6)  # two frames are given, three take two steps more each
    assert (schedule.lag, schedule.ahead, schedule.steps) == (2, 2, 6)
    np.testing.assert_array_equal(
        schedule.step_table(5, 2, 2), [[6, 6, 4, 2, 0], [6, 6, 5, 3, 1], [6, 6, 6, 4, 2]]
    )
    for known in (0, 1, 2):  # what the first window leaves is where the next one begins
        first = schedule.step_table(5, known, 0)
        assert first[0].tolist() == [6] * known + [0] * (5 - known) and first[-1].tolist() == [6, 6, 6, 4, 2]
        assert set(np.unique(np.diff(first, axis=0))) == {0, 1}


@pytest.mark.slow
def test_a_rolling_video_of_a_perfect_model_has_no_seam(generator, coder, truth, monkeypatch):
    """And of what a window leaves unfinished the next one makes the rest."""
    sample = dataclasses.replace(generator.settings.sample, steps=6)
    schedule, n = rolling_schedule(5, long.context_frames(5), sample.steps), 5
    left, stars = [], {}

    def oracle(self, batch, x, table, time_index):
        return (x - stars["now"]) / jnp.maximum(times_at(table, time_index), 1e-6)

    monkeypatch.setattr(VideoModel, "velocity", oracle)

    def make(number, share, give, rest):
        begins = 2 * number
        latents = coder.encode(truth[begins : begins + FRAMES])
        stars["now"] = jnp.asarray(patchify(latents[None], (1, 2, 2)))
        if number:
            np.testing.assert_array_equal(rest, left[-1])
        with jax.disable_jit():  # the oracle is not a part of any program that is kept
            made = sample_rolling_latents(
                generator,
                ["a bird"],
                sample,
                Noise(1, window=number),
                RollingWindow(schedule, rest),
                conditioning=give(),
            )[0]
        held = 2 if number else 0
        np.testing.assert_allclose(made[held : n - schedule.ahead], latents[held : n - schedule.ahead], atol=1e-3)
        assert np.abs(made[n - schedule.ahead :] - latents[n - schedule.ahead :]).mean() > 0.1
        left.append(made[n - schedule.ahead :])
        return made

    video = np.concatenate(list(long.forward(coder, make, FRAMES, 15, ahead=schedule.ahead)))
    assert len(video) == 15 and len(left) == 6 == long.count(2, FRAMES, 15, None, ahead=schedule.ahead)
    assert_no_seam(coder, truth, video, [5, 7, 9, 11, 13])


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_frames_at_the_same_step_are_a_window(generator, solver):
    """Frames with a step number each take the same step as frames with one for all."""
    program = StepProgram(generator.settings, SOLVERS[solver])
    sample = dataclasses.replace(generator.settings.sample, guidance=2.0)
    clip = Clip("a bird", sample, Noise(0))
    grid = clip.grid(generator)
    layout = one_a_row(1, int(np.prod(grid)))
    batch, _ = make_batch(generator, [clip], layout)
    noise = noise_of([clip], layout, [layout.length])
    times = time_grid(4, 2.0)

    def step(i, guidance, **options):
        pairs, state = begin(program, generator.params, batch, noise)
        inputs = StepInputs(pairs, batch.conditioning_mask, times)
        return solver_step(program, generator.params, inputs, state, i, guidance, **options)[0][0]

    whole = step(jnp.int32(1), jnp.float32(2))
    frames = np.full(grid[0], 1)
    parts = step(jnp.asarray(frames), jnp.full(grid[0], 2.0), moving=jnp.asarray(frames > 0))
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    half = step(jnp.asarray(frames), jnp.full(grid[0], 2.0), moving=jnp.arange(grid[0]) < 2)
    count = half.shape[1] // grid[0]
    np.testing.assert_allclose(half[:, : 2 * count], whole[:, : 2 * count], atol=1e-5)
    start = begin(program, generator.params, batch, noise)[1][0]
    np.testing.assert_array_equal(half[:, 2 * count :], start[:, 2 * count :])


@pytest.mark.slow
def test_a_rolling_window_is_the_same_on_any_mesh(generator, tmp_path):
    sample = dataclasses.replace(generator.settings.sample, solver="ancestral")
    window = RollingWindow(rolling_schedule(5, 2, 4), np.zeros((0,), np.float32))
    wanted = sample_rolling_latents(generator, ["a bird"], sample, Noise(1), window)
    assert np.abs(wanted[0, 2] - wanted[0, 3]).max() > 0.1  # finished, and not
    run_of = write_run(tmp_path / "run")
    with jax.set_mesh(tiny.mesh_of(2, ulysses=2)):
        other = load_generator(run_of)
        found = sample_rolling_latents(other, ["a bird"] * 2, sample, Noise(1), window)
    np.testing.assert_allclose(found[:1], wanted, atol=1e-4)


def test_pictures_that_no_latent_can_hold_are_told(coder):
    picture = clip()[0]
    with pytest.raises(InputError, match="frames 3 and 4: both lie in one latent of the autoencoder"):
        tasks.keyframes(coder, FRAMES, {3: picture, 4: picture})
    with pytest.raises(InputError, match="frame 9 of a video of frames 0 to 8"):
        tasks.keyframes(coder, FRAMES, {9: picture})
    with pytest.raises(InputError, match="8 frames between two videos; --frames=9 leaves 6"):
        tasks.connect(coder, FRAMES, Film(clip()[:5]), Film(clip()[:5]), 4)
    for known in (np.ones((64, 64), bool), ~np.eye(64, dtype=bool) & np.eye(64, dtype=bool)):
        with pytest.raises(InputError, match="is kept of the video in whole patches of 16x16"):
            tasks.inpaint(coder, clip()[:5], known)


def test_a_suffix_encoded_after_stillness_is_nearest_to_what_training_saw(coder, truth):
    whole = coder.encode(truth)[-4:]
    suffix = truth[-8:]
    alone = np.abs(coder.encode(suffix[1:]) - whole).mean(axis=(1, 2, 3))
    still = np.abs(coder.encode_later(suffix)[-4:] - whole).mean(axis=(1, 2, 3))
    assert (still < 0.7 * alone).all()
