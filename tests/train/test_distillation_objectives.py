"""Distillation as an objective: what the teacher teaches, whose turn it is, packed sequences, meshes, resume."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_run import write_data

from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.restore import restore_trained
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.cli.main import main
from sora_jax.config.load import to_json
from sora_jax.diffusion.flow import noisy_patches
from sora_jax.diffusion.solvers import euler
from sora_jax.generate.sampling.steps import StepInputs, StepProgram, begin, solver_step
from sora_jax.models.layers.params import bind
from sora_jax.models.video_model import VideoModel
from sora_jax.train.objectives.distillation import GuidanceDistillation, MomentMatching, guided_teacher
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import init_state
from sora_jax.train.step import make_step

EOS = 1
SETTINGS = tiny.change(
    tiny.SETTINGS,
    masks={"text": 3.0, "first_frame": 1.0},
    train={"init_from": "teacher"},
    distill={"guidance": 3.0, "guidance_max": 0.95, "steps": 4},
)
MOMENTS = dataclasses.replace(SETTINGS, objective="moment_matching")
GUIDANCE = dataclasses.replace(SETTINGS, objective="guidance_distillation")


@functools.cache
def teacher() -> dict:
    with jax.set_mesh(tiny.mesh_of()):
        return tiny.random_params(VideoModel, SETTINGS)


def batch_of(seed: int, given: bool = True):
    """A random batch whose captions end as a tokenizer's do, and of which some frames are given."""
    batch = tiny.random_batch(seed)
    for text, ids in zip(batch.text, batch.text_segment_ids, strict=True):
        text[: len(ids) - 1][(ids[:-1] > 0) & (ids[1:] != ids[:-1])] = EOS
    mask = given & (batch.segment_ids > 0) & (batch.positions[..., 0] == 0) & (batch.segment_ids % 2 == 0)
    return batch.replace(conditioning_mask=mask)


class Run:
    """A tiny run of an objective on the current mesh, whose nets begin as the teacher."""

    def __init__(self, objective):
        self.objective, settings = objective, objective.settings
        self.optimizer = make_optimizer(
            settings.optimizer, settings.train.steps, objective.players, objective.rates
        )
        self.step = make_step(objective, self.optimizer, settings)

    def fresh(self):
        state = init_state(self.objective, self.optimizer, jax.random.key(0))
        held = dict.fromkeys(self.objective.players, teacher()) or teacher()
        place = functools.partial(jax.tree.map, lambda x, y: jax.device_put(np.array(x), y.sharding))
        return state.replace(params=place(held, state.params), ema=place(held, state.ema))

    def go(self, state, numbers):
        states, losses = [jax.device_get(state)], []
        for n in numbers:
            state, metrics = self.step(state, {"teacher": teacher()}, tiny.on_mesh(batch_of(n)))
            states.append(jax.device_get(state))
            losses.append(float(metrics["loss"]))
        return state, states, losses


@pytest.fixture(scope="module")
def moments():
    with jax.set_mesh(tiny.mesh_of()):
        run = Run(MomentMatching(MOMENTS))
        yield run, *run.go(run.fresh(), range(4))


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_the_target_is_the_velocity_that_guided_sampling_uses(one_device):
    """With the caption and the given frames against neither of them."""
    settings = tiny.change(SETTINGS, masks={"guided": True})
    batch = jax.tree.map(lambda x: x[3:4], batch_of(0, given=False))  # a single clip
    batch = batch.replace(conditioning_mask=(batch.segment_ids > 0) & (batch.positions[..., 0] == 0))
    tokens = batch.text_segment_ids > 0
    texts = np.concatenate([np.where(tokens, batch.text, 0), np.eye(1, batch.text.shape[1], dtype=np.int32)])
    ids = np.concatenate([batch.text_segment_ids, np.eye(1, batch.text.shape[1], dtype=np.int32)])
    program = StepProgram(settings, euler)
    params, at = jax.tree.map(jnp.asarray, teacher()), 0.8
    in_sampling = tiny.on_mesh(batch.replace(text=texts, text_segment_ids=ids))
    pairs, _ = begin(program, params, in_sampling, tiny.clip_noise(jax.random.split(jax.random.key(1), 1)))
    noise = pairs.patches[:1]
    batch = tiny.on_mesh(batch)
    x, table, time_index = noisy_patches(
        batch, noise, jnp.full((1, 3), at), conditioning_time=settings.masks.noise
    )
    model = bind(VideoModel, settings, params)
    taught = guided_teacher(model, settings, batch)(x, table, time_index, noise)
    inputs = StepInputs(pairs, in_sampling.conditioning_mask, jnp.float32([at, 0.0]))
    _, used, _ = solver_step(program, params, inputs, (x,), jnp.int32(0), jnp.float32(3.0))
    moved = np.asarray(~batch.conditioning_mask & (batch.segment_ids > 0))
    np.testing.assert_allclose(np.asarray(taught)[moved], np.asarray(used)[moved], atol=2e-5)


def test_without_guidance_the_teacher_has_nothing_to_teach(one_device):
    settings = tiny.change(GUIDANCE, distill={"guidance": 1.0})
    run = Run(GuidanceDistillation(settings))
    assert run.go(run.fresh(), [0])[2][0] < 1e-10
    run = Run(GuidanceDistillation(GUIDANCE))
    losses = run.go(run.fresh(), [0] * 8)[2]
    assert 1e-4 < losses[-1] < losses[1]


def test_student_and_critic_learn_in_turns_and_the_other_rests(moments):
    _, _, states, losses = moments
    for n, (before, after) in enumerate(itertools.pairwise(states)):
        acting, resting = ("student", "critic") if n % 2 == 0 else ("critic", "student")
        for part in ("params", "opt_state"):
            old, new = (getattr(s, part) for s in (before, after))
            old, new = (x if part == "params" else x[1] for x in (old, new))
            assert equal(old[resting], new[resting]), (n, part)
            assert not equal(old[acting], new[acting]), (n, part)
    # At the start the critic is the teacher without guidance; nothing but guidance pulls the student.
    assert np.isfinite(losses).all() and losses[0] > 1e-5


def test_a_resumed_run_takes_the_turn_that_was_next(moments):
    run, last, states, losses = moments
    del last
    resumed, _, rest = run.go(
        jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), states[1], run.fresh()), [1, 2, 3]
    )
    assert rest == losses[1:]
    assert equal(jax.device_get(resumed), states[-1])


def loss_of(objective, params, batch, drawn):
    total, weight, _ = jax.jit(objective.loss)(params, {"teacher": teacher()}, batch, drawn)
    return float(total), float(weight)


@pytest.mark.parametrize("step", [0, 1], ids=["student", "critic"])
def test_a_packed_row_is_the_sum_of_its_clips_alone(moments, step):
    """The other clips of the row are taken out, together with their captions; noise and times stay."""
    run, _, states, _ = moments
    with jax.set_mesh(tiny.mesh_of()):
        params, row = states[-1].params, jax.tree.map(lambda x: x[2:3], batch_of(0))
        drawn = run.objective.draw(jax.random.key(0), tiny.on_mesh(batch_of(0)), step)
        drawn = jax.tree.map(lambda x: x[2:3], drawn)

        def only(clip):
            return row.replace(
                segment_ids=np.where(row.segment_ids == clip, clip, 0),
                text_segment_ids=np.where(row.text_segment_ids == clip, clip, 0),
                conditioning_mask=row.conditioning_mask & (row.segment_ids == clip),
            )

        whole = loss_of(run.objective, params, tiny.on_mesh(row), drawn)
        alone = [loss_of(run.objective, params, tiny.on_mesh(only(clip)), drawn) for clip in (1, 2, 3)]
        np.testing.assert_allclose(np.sum(alone, axis=0), whole, rtol=1e-5)


@pytest.mark.slow
def test_many_devices_learn_what_one_learns(moments):
    _, _, states, losses = moments
    with jax.set_mesh(tiny.mesh_of(data=2, fsdp=2, ulysses=2)):
        run = Run(MomentMatching(MOMENTS))
        _, sharded, found = run.go(run.fresh(), range(4))
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), sharded[-1].params, states[-1].params)


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param("guidance_distillation", marks=pytest.mark.exhaustive),
        pytest.param("moment_matching", marks=pytest.mark.slow),
    ],
)
def test_a_student_is_trained_resumed_released_and_sampled_from_the_command_line(tmp_path, objective, capsys):
    settings = tiny.change(
        tiny.SETTINGS,
        text={"vocabulary": 400},
        train={"steps": 2, "save_every": 1},
        sample={"size": "32x32", "frames": 5, "steps": 1},
    )
    write_data(tmp_path / "data", "latents", settings.autoencoder)
    config, data = tmp_path / "tiny.json", f"--config.data.path={tmp_path}/data"
    config.write_text(to_json(settings))

    def run(command, *flags):
        assert main([*command.split(), *flags]) == 0

    run("train", f"--config={config}", data, f"--workdir={tmp_path}/teacher")
    student = (f"--config={config}", data, f"--workdir={tmp_path}/student", f"--config.objective={objective}")
    student += (f"--config.train.init_from={tmp_path}/teacher", "--config.distill.guidance=2.0")
    run("train", *student, "--config.train.steps=1")
    run("train", *student, "--config.train.steps=3")
    run("checkpoint verify", f"--workdir={tmp_path}/student")
    run("checkpoint release", f"--workdir={tmp_path}/student", f"--out={tmp_path}/released", "--dtype=float32")
    with jax.set_mesh(tiny.mesh_of()):
        params = []
        for name in ("student", "released"):
            folder, step = find_checkpoint(tmp_path / name)
            params.append(restore_trained(folder, step, read_meta(folder, step)[0]))
        assert equal(*jax.device_get(params))
    run("sample", f"--checkpoint={tmp_path}/student", "--prompt=a bird", f"--out={tmp_path}/a.mp4")
    capsys.readouterr()
    assert (
        main(["train", f"--config={config}", data, f"--workdir={tmp_path}/b", f"--config.objective={objective}"])
        == 2
    )
    assert "needs config.train.init_from, the teacher" in capsys.readouterr().err
