import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sora_jax.config.schema import FlowSettings
from sora_jax.diffusion.conditioning import freeze_conditioning, start_from
from sora_jax.diffusion.flow import (
    MIN_TIME,
    clip_shifts,
    flow_errors,
    sample_times,
    shift_of,
    shift_times,
    time_table,
    times_at,
    velocity_to,
)
from sora_jax.diffusion.guidance import guided
from sora_jax.diffusion.solvers import ancestral, dpm, euler, heun, time_grid, unipc
from sora_jax.models.layers.params import bind, init_params
from sora_jax.models.video_model import VideoModel


def gaussian_velocity(mean, std):
    """The exact velocity when the data are normal: E[noise - data | x at time t] is linear in x."""

    def velocity(x, t):
        variance = (1 - t) ** 2 * std**2 + t**2
        slope = (t - (1 - t) * std**2) / variance
        return slope * (x - (1 - t) * mean) - mean

    return velocity


def on_path(noise, t, mean, std):
    """Where noise has gone at time t: the path of a normal keeps its quantile."""
    return (1 - t) * mean + np.sqrt((1 - t) ** 2 * std**2 + t**2) * noise


@pytest.mark.parametrize("solver, order", [(euler, 1), (heun, 2), (dpm, 2), (unipc, 2)])
def test_solver_error_falls_at_its_order_on_a_gaussian(solver, order):
    noise = np.linspace(-2, 2, 9, dtype=np.float32)
    velocity = gaussian_velocity(0.7, 0.5)

    def error(times):
        start = on_path(noise, float(times[0]), 0.7, 0.5).astype(np.float32)
        end = jax.jit(lambda x: solver(velocity, x, times))(start)
        return np.max(np.abs(end - on_path(noise, float(times[-1]), 0.7, 0.5)))

    # Away from the ends: there the step of a solver in log(SNR) is infinite, and its order is not seen.
    errors = [error(jnp.linspace(0.9, 0.1, steps + 1)) for steps in (16, 32, 64)]
    measured = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(measured > order - 0.25), measured  # more where the error crosses 0
    assert error(time_grid(64)) < (0.03 if order == 1 else 0.003)


def noise_of(rows):
    return tiny.clip_noise(jax.random.split(jax.random.key(0), rows))


def test_ancestral_steps_end_in_the_data_s_distribution_from_any_noise(one_device):
    noise = jnp.full((4, 1, 10_000), 0.3, jnp.float32)
    end = ancestral(gaussian_velocity(0.7, 0.5), noise, time_grid(256), noise_of(4))
    np.testing.assert_allclose([np.mean(end), np.std(end)], [0.7, 0.5], atol=0.02)
    assert np.abs(np.corrcoef(end[:, 0])[~np.eye(4, dtype=bool)]).max() < 0.05  # each row has noise of its own


@pytest.mark.parametrize("solver", [euler, heun, ancestral, dpm, unipc])
def test_solver_is_exact_when_the_velocity_is_constant(one_device, solver):
    # All data in one point: every path is straight, so one step is enough.
    noise = jnp.linspace(-2, 2, 5, dtype=jnp.float32)[:, None, None]
    end = solver(lambda x, t: noise - 3.0, noise, time_grid(1), noise_of(5))
    np.testing.assert_allclose(end, 3.0, atol=1e-5)  # some begin 1e-6 below t = 1


def test_time_grid_runs_from_noise_to_data_and_is_shifted_towards_noise():
    times = np.asarray(time_grid(4, 3.0))
    assert times[0] == 1 and times[-1] == 0
    np.testing.assert_allclose(times[1:-1], [0.9, 0.75, 0.5], rtol=1e-6)


def test_shift_of_published_sizes():
    np.testing.assert_allclose(shift_of(256, 1), 1.0)
    np.testing.assert_allclose(shift_of(4096, 1), 3.0)
    np.testing.assert_allclose(shift_of(4 * 256, 4), 2.0)
    assert shift_times(0.5, 3.0) == 0.75


def test_each_clip_of_a_sequence_has_its_own_shift(one_device):
    batch = tiny.on_mesh(tiny.random_batch(0))
    shifts = np.asarray(clip_shifts(batch, 3, FlowSettings()))
    np.testing.assert_allclose(shifts[0], [shift_of(18, 3), 1, 1], rtol=1e-6)
    np.testing.assert_allclose(shifts[2], [shift_of(1, 1), shift_of(16, 2), shift_of(9, 1)], rtol=1e-6)
    scaled = np.asarray(clip_shifts(batch, 3, FlowSettings(shift_scale=2.0)))
    np.testing.assert_allclose(scaled, np.where(shifts == 1, 1, 2 * shifts), rtol=1e-6)
    np.testing.assert_array_equal(clip_shifts(batch, 3, FlowSettings(shift=5.0)), np.full((8, 3), 5.0))


@pytest.mark.parametrize("low, high", [(0.875, 1.0), (0.0, 0.875)])
def test_times_of_an_expert_are_those_of_all_in_its_range(one_device, low, high):
    batch = tiny.on_mesh(tiny.random_batch(0))
    every = np.ravel(sample_times(jax.random.key(0), batch, 4000, FlowSettings(shift=5.0)))
    expert = FlowSettings(shift=5.0, time_min=low, time_max=high)
    mine = np.ravel(sample_times(jax.random.key(1), batch, 4000, expert))
    assert mine.min() >= low and mine.max() <= high
    shares = np.linspace(0.05, 0.95, 7)
    wanted = np.quantile(every[(every >= low) & (every <= high)], shares)
    np.testing.assert_allclose(np.quantile(mine, shares), wanted, atol=0.015)


def test_times_are_logit_normal_before_the_shift(one_device):
    batch = tiny.on_mesh(tiny.random_batch(0))
    settings = FlowSettings(time_mean=0.5, time_std=0.8, shift=1.0)
    keys = jax.random.split(jax.random.key(0), 400)
    times = jax.jit(jax.vmap(lambda key: sample_times(key, batch, 3, settings)))(keys)
    logits = np.log(times / (1 - times))
    np.testing.assert_allclose([logits.mean(), logits.std()], [0.5, 0.8], atol=0.03)


def test_times_are_stratified_over_the_batch(one_device):
    batch = tiny.on_mesh(tiny.random_batch(0))
    times = np.asarray(sample_times(jax.random.key(0), batch, 3, FlowSettings(shift=1.0)))
    shares = np.asarray(jax.scipy.special.ndtr(np.log(times / (1 - times))))
    np.testing.assert_array_equal(np.sort(np.floor(shares * 8), axis=0), np.tile(np.arange(8)[:, None], 3))


def test_conditioning_patches_are_clean_and_have_no_loss(one_device):
    batch = tiny.random_batch(0)
    batch.conditioning_mask[:, :4] = True
    batch = tiny.on_mesh(batch)
    noise = jax.random.normal(jax.random.key(0), batch.patches.shape)
    times = jnp.full((8, 3), 0.6)
    seen = {}

    def velocity(patches, table, time_index):
        seen.update(patches=patches, time_index=time_index, table=table)
        return jnp.zeros_like(patches)

    errors, counts = flow_errors(velocity, batch, noise, times)
    np.testing.assert_array_equal(seen["patches"][:, :4], batch.patches[:, :4])
    np.testing.assert_array_equal(seen["time_index"][:, :4], 0)
    np.testing.assert_array_equal(seen["table"][:, 0], 0)
    np.testing.assert_array_equal(counts, (batch.segment_ids > 0) & ~batch.conditioning_mask)
    target = jnp.mean(jnp.square(noise - batch.patches), axis=-1)
    np.testing.assert_allclose(errors, target * counts, rtol=1e-6)


def test_a_perfect_velocity_has_no_error(one_device):
    batch = tiny.on_mesh(tiny.random_batch(1))
    noise = jax.random.normal(jax.random.key(1), batch.patches.shape)

    def velocity(patches, table, time_index):
        t = jnp.take_along_axis(table, time_index, axis=1)[..., None]
        # Solve the path for the noise: x = (1 - t) data + t noise.
        return jnp.where(t > 0, (patches - batch.patches) / jnp.maximum(t, 1e-6), noise - batch.patches)

    errors, _ = flow_errors(velocity, batch, noise, jnp.full((8, 3), 0.5))
    assert np.max(errors) < 1e-8


def test_a_model_that_predicts_the_data_has_its_velocity(one_device):
    """Data given as the output: the velocity is exact, but for times so small that they count as more."""
    batch = tiny.on_mesh(tiny.random_batch(1))
    noise = jax.random.normal(jax.random.key(1), batch.patches.shape)

    def velocity(patches, table, time_index):
        return velocity_to(batch.patches, patches, times_at(table, time_index))

    for t, least in ((0.5, 0.0), (MIN_TIME / 2, 0.1)):
        errors, counts = flow_errors(velocity, batch, noise, jnp.full((8, 3), t))
        mean = float(jnp.sum(errors) / jnp.sum(counts))
        assert least < mean < 1 if least else mean < 1e-8


def test_what_the_transformer_predicts_changes_only_what_its_output_means(one_device):
    settings = tiny.change(tiny.SETTINGS, transformer={"predicts": "data"})
    batch = tiny.on_mesh(tiny.random_batch(1))
    params = init_params(VideoModel, settings, jax.random.key(0))
    params["transformer"]["head"]["kernel"] += 0.1
    table, time_index = time_table(batch, jnp.full((8, 3), 0.5))

    def velocity(settings):
        model = bind(VideoModel, settings, params)
        return model.velocity(model.embed_text(batch), batch.patches, table, time_index)

    there, used = 2 * (batch.patches - velocity(tiny.SETTINGS)), batch.segment_ids > 0
    np.testing.assert_allclose(velocity(settings)[used], there[used], atol=1e-5)


def test_solving_leaves_conditioning_patches_untouched(one_device):
    batch = tiny.random_batch(2)
    batch.conditioning_mask[:, ::2] = True
    batch = tiny.on_mesh(batch)
    start = start_from(jax.random.normal(jax.random.key(0), batch.patches.shape), batch)
    end = heun(freeze_conditioning(lambda x, t: x + t, batch.conditioning_mask), start, time_grid(3))
    np.testing.assert_array_equal(end[:, ::2], batch.patches[:, ::2])
    assert not np.allclose(end[:, 1], start[:, 1])


def test_conditioning_patches_and_padding_have_the_first_time():
    batch = tiny.random_batch(0)
    batch.conditioning_mask[0, 0] = True
    table, time_index = time_table(batch, jnp.asarray(np.full((8, 3), 0.3, np.float32)))
    assert table.shape == (8, 4) and time_index[0, 0] == 0 and time_index[0, 1] == 1
    np.testing.assert_array_equal(time_index[batch.segment_ids == 0], 0)


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "ulysses": 2}])
def test_guidance_extrapolates_from_the_unconditional_velocity(mesh):
    with jax.set_mesh(tiny.mesh_of(**mesh)):
        x = tiny.on_mesh(tiny.random_batch(0)).patches

        def velocity(pairs, t):
            sign = jnp.where(jnp.arange(len(pairs)) % 2, -1.0, 1.0)  # conditional +x, unconditional -x
            return pairs * sign[:, None, None]

        got = jax.jit(lambda x: guided(velocity, 3.0)(x, 0.5))(x)
        np.testing.assert_allclose(got, -x + 3 * (x - -x), rtol=1e-6)
