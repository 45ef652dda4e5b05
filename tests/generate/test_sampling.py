"""What makes sampling faster changes what it says it changes, and no more."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.core.patches import PatchBatch
from sora_jax.data.tokenizer import train_tokenizer
from sora_jax.diffusion.conditioning import renoised, start_from
from sora_jax.diffusion.flow import shift_times
from sora_jax.generate.generator import Generator
from sora_jax.generate.inputs.conditioning_images import ConditioningFrames
from sora_jax.generate.sampling import pipeline
from sora_jax.generate.sampling.clips import Noise
from sora_jax.generate.sampling.pipeline import batch_size, sample_latents
from sora_jax.generate.sampling.schedule import denoising_schedule
from sora_jax.generate.sampling.step_cache import (
    VelocityChange,
    VelocityMeter,
    read_velocity_change,
    write_velocity_change,
)
from sora_jax.generate.sampling.steps import StepInputs, StepProgram
from sora_jax.models.layers.params import init_params
from sora_jax.models.video_model import VideoModel

SETTINGS = tiny.change(
    tiny.SETTINGS,
    text={"vocabulary": 400},
    transformer={"layers": 1},
    sample={"size": "32x32", "frames": 5, "steps": 4, "guidance": 3.0, "shift": 1.0},
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer(["a rabbit", "a bird"], path, vocabulary=400)


def generator_of(tokenizer) -> Generator:
    """A transformer that was never trained, on the current mesh, the same on each."""
    params = jax.jit(lambda key: init_params(VideoModel, SETTINGS, key))(jax.random.key(0))
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put(draw.normal(0, 0.1, x.shape).astype(np.float32), x.sharding), params
    )
    return Generator(SETTINGS, params, SETTINGS.autoencoder, {}, tokenizer, step=0)


def make(generator, monkeypatch=None, prompts=("a bird",), **changes):
    """(latents, the guidance of each step: None where the conditional pass was alone)."""
    scales, step = [], pipeline.solver_step

    def spied(*args, **options):
        scales.append(None if args[5] is None else float(args[5]))
        return step(*args, **options)

    if monkeypatch:
        monkeypatch.setattr(pipeline, "solver_step", spied)
    sample = dataclasses.replace(SETTINGS.sample, **changes)
    latents = sample_latents(generator, prompts, sample, Noise(3))
    if monkeypatch:
        monkeypatch.undo()
    return latents, scales


def test_the_sampler_shifts_its_times_as_training_does():
    def times(**flow):
        settings = tiny.change(SETTINGS, flow=flow, sample={"shift": 0.0})
        generator = Generator(settings, {}, settings.autoencoder, {}, None, step=0)
        return denoising_schedule(generator, settings.sample).times

    np.testing.assert_allclose(times(shift_scale=3.0), shift_times(times(), 3.0), atol=1e-6)


@pytest.fixture(scope="module")
def alone(tokenizer):
    """The generator on one device, and what it makes."""
    with jax.set_mesh(tiny.mesh_of()):
        generator = generator_of(tokenizer)
        yield generator, make(generator)[0]


def test_guidance_is_left_out_outside_of_its_interval(alone, monkeypatch):
    generator, plain = alone  # at times 1, 0.75, 0.5 and 0.25
    latents, scales = make(generator, monkeypatch, guidance_min=0.4, guidance_max=0.8)
    assert scales == [None, 3.0, 3.0, None] and np.abs(latents - plain).max() > 1e-3
    latents, scales = make(generator, monkeypatch, guidance_min=0.0, guidance_max=0.1)
    assert scales == [None] * 4
    np.testing.assert_array_equal(latents, make(generator, guidance=1.0)[0])


def test_a_step_without_guidance_costs_half(alone):
    generator, _ = alone
    x = jnp.zeros((1, 2 * 4, 4 * 4), jnp.float32)
    batch = tiny.pack([[((2, 2, 2), np.asarray(x[0]), np.ones(3, np.int32))]], SETTINGS)
    batch = batch.replace(
        **{
            name: getattr(batch, name)[:, :8]
            for name in ("patches", "positions", "segment_ids", "conditioning_mask")
        }
    )
    both = np.ones((2, SETTINGS.text.max_tokens), np.int32)
    batch = jax.tree.map(jnp.asarray, batch.replace(text=both, text_segment_ids=both))
    program = StepProgram(SETTINGS, pipeline.SOLVERS["euler"])
    pairs, state = jax.eval_shape(
        lambda params, batch: pipeline.begin(
            program, params, batch, tiny.clip_noise(jax.random.split(jax.random.key(0), 1)), jnp.float32(1)
        ),
        generator.params,
        batch,
    )
    inputs = StepInputs(pairs, batch.conditioning_mask, jnp.linspace(1, 0, 5))
    flops = [
        pipeline.solver_step.lower(program, generator.params, inputs, state, jnp.int32(0), scale).cost_analysis()[
            "flops"
        ]
        for scale in (jnp.float32(3), None)
    ]
    assert 0.45 < flops[1] / flops[0] < 0.55


def test_the_halves_of_a_guided_step_run_on_chips_of_their_own(alone, tokenizer):
    _, plain = alone
    with jax.set_mesh(tiny.mesh_of(2)):
        assert (batch_size(1, 3.0), batch_size(1, 1.0), batch_size(2, 3.0)) == (1, 2, 2)
        seen, begin = [], pipeline.begin

        def spied(*args):
            seen.append(begin(*args))
            return seen[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "begin", spied)
            latents, _ = make(generator_of(tokenizer))
        [(pairs, state)] = seen
        for x in jax.tree.leaves(pairs):
            assert x.shape[0] == 2 and x.sharding.shard_shape(x.shape)[0] == 1
        assert state[0].sharding.is_fully_replicated
    np.testing.assert_allclose(latents, plain, atol=1e-5)


def test_guidance_strengthens_conditioning_frames_if_the_model_was_trained_with_and_without(alone):
    generator, _ = alone
    draw = np.random.default_rng(1)
    pictures = draw.normal(size=(2, 2, 4, 4, 4)).astype(np.float32)
    mask = np.broadcast_to(np.array([True, False])[:, None, None], (2, 2, 2))  # the first of two frames

    def differ(guidance, **masks):
        """How much the sampled frame, in one step, depends on the conditioning frame."""
        settings = tiny.change(SETTINGS, masks=masks, sample={"guidance": guidance, "steps": 1})
        ours = dataclasses.replace(generator, settings=settings)
        made = [
            sample_latents(
                ours, ["a bird"], settings.sample, Noise(3), conditioning=ConditioningFrames(latents, mask)
            )
            for latents in pictures
        ]
        return np.abs(made[0][0, 1] - made[1][0, 1]).max()

    assert differ(1.0, first_frame=1) > 1e-3
    assert differ(0.0, first_frame=1) == 0  # only the unconditional row, without conditioning frames
    # Models trained only with conditioning frames, or never with them, or sampled as the published ones are.
    for masks in ({"first_frame": 1, "text": 0.0}, {}, {"first_frame": 1, "guided": False}):
        assert differ(0.0, **masks) > 1e-3


def test_conditioning_frames_that_the_unconditional_row_lacks_lie_on_the_path_to_noise():
    draw = np.random.default_rng(0)
    data, noise = draw.normal(size=(2, 1, 3, 4)).astype(np.float32)
    batch = PatchBatch(*[None] * 6).replace(patches=data, conditioning_mask=np.ones((1, 3), bool))
    held = start_from(noise, batch, conditioning_time=0.1)
    for time in (0.05, 0.1, 0.6, 1.0):
        np.testing.assert_allclose(renoised(held, noise, 0.1, time), (1 - time) * data + time * noise, atol=1e-6)


def test_the_noise_of_ancestral_steps_is_a_video_s_own_on_any_mesh(alone, tokenizer):
    generator, plain = alone
    wanted, _ = make(generator, solver="ancestral")
    assert np.abs(wanted - plain).max() > 0.1
    with jax.set_mesh(tiny.mesh_of(2)):
        both, _ = make(generator_of(tokenizer), prompts=("a bird", "a rabbit"), solver="ancestral")
    np.testing.assert_allclose(both[:1], wanted, atol=1e-5)


def test_steps_are_cached_until_the_velocity_has_changed():
    times = tuple(np.linspace(1, 0, 11)[:-1])
    change = VelocityChange(times, tuple(0.1 * n for n in range(10)), step=0)
    settings = tiny.change(SETTINGS, sample={"steps": 10, "shift": 1.0})
    generator = Generator(settings, {}, settings.autoencoder, {}, None, step=0, velocity_change=change)

    def cached(generator=generator, **changes):
        return denoising_schedule(generator, dataclasses.replace(settings.sample, **changes)).cached

    assert cached() == []
    # The first fifth runs; then one of two, as the velocity changes by a tenth a step; then two of three.
    assert cached(step_cache_threshold=0.15) == [2, 4, 6, 8]
    assert cached(step_cache_threshold=0.25) == [2, 3, 5, 6, 8, 9]
    # From step 4 on there is no guidance; that step would run anyway.
    assert cached(step_cache_threshold=0.25, guidance_max=0.65) == [2, 3, 5, 6, 8, 9]
    # A step with other guidance than the one before runs.
    assert cached(step_cache_threshold=0.25, guidance_max=0.75) == [2, 4, 5, 7, 8]
    # Steps of half the length: two of three, after the first four.
    assert len(cached(step_cache_threshold=0.12, steps=20)) == 11
    with pytest.raises(InputError, match="has not been measured"):
        cached(dataclasses.replace(generator, velocity_change=None), step_cache_threshold=0.1)


@pytest.mark.parametrize("solver", ["euler", "ancestral", "unipc"])
def test_a_cached_step_takes_the_data_predicted_last(alone, monkeypatch, solver):
    generator, plain = alone
    meter = VelocityMeter()
    sample = dataclasses.replace(SETTINGS.sample, solver=solver)
    measured = sample_latents(generator, ["a bird"], sample, Noise(3), on_step=meter)
    change = meter.result(0)
    assert change.times == (1.0, 0.75, 0.5, 0.25) and np.all(np.diff(change.change) > 0)
    generator = dataclasses.replace(generator, velocity_change=change)
    skipping = make(generator, monkeypatch, solver=solver, step_cache_threshold=1e-9)
    assert len(skipping[1]) == 4
    np.testing.assert_array_equal(skipping[0], measured)
    latents, scales = make(generator, monkeypatch, solver=solver, step_cache_threshold=1e9)
    assert scales == [3.0]  # the model has run once
    if solver == "euler":
        np.testing.assert_array_equal(measured, plain)
        # Towards the same data four steps are one.
        np.testing.assert_allclose(latents, make(generator, solver=solver, steps=1)[0], atol=1e-5)


def test_a_velocity_change_comes_back_from_its_file_and_a_malformed_one_is_told(tmp_path):
    change, path = VelocityChange((1.0, 0.5), (0.0, 0.25), 7), tmp_path / "velocity_change.json"
    write_velocity_change(path, change)
    assert read_velocity_change(path) == change
    for text in (
        "{}",
        '{"times": [0, 1], "change": [0, 1], "step": 1}',
        '{"times": [1], "change": [], "step": 1}',
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=r"velocity_change\.json: not a measured velocity change"):
            read_velocity_change(path)


def test_settings_of_guidance_that_can_not_be_are_told():
    with pytest.raises(InputError, match=r"guidance_min: .* is above sample"):
        SampleSettings(guidance_min=0.5, guidance_max=0.4)
    with pytest.raises(InputError, match=r"guidance_max: .* must be from 0 to 1"):
        SampleSettings(guidance_max=1.5)
    with pytest.raises(InputError, match="dtype: 'float16'"):
        SampleSettings(dtype="float16")
