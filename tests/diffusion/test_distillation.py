"""Times, noise and losses of distillation, on data whose expectation is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.config.schema import DistillSettings
from sora_jax.diffusion.distillation import critic_error, guidance_at, moment_loss, step_back, step_times

STEPS = DistillSettings(steps=4, off_grid=0.0)


def test_times_lie_on_the_students_grid_and_are_judged_less_than_a_step_below(one_device):
    t, s = step_times(jax.random.key(0), jnp.ones((64, 8)), STEPS)
    assert {0.25, 0.5, 0.75, 1.0} == set(np.unique(t).tolist())
    assert np.all(s < t) and np.all(s > np.maximum(t - 0.25, 0) - 1e-6) and s.min() > 0


def test_some_times_lie_off_the_grid_and_all_are_shifted_by_the_clips_size(one_device):
    shifts = jnp.full((64, 8), 3.0)
    t, s = step_times(jax.random.key(0), shifts, DistillSettings(steps=4, off_grid=0.5))
    unshifted = t / (3 - 2 * t)
    on_grid = np.abs(unshifted * 4 - np.round(unshifted * 4)) < 1e-4
    assert 0.4 < on_grid.mean() < 0.6
    assert np.all(s <= t)


def test_a_step_back_of_no_length_changes_nothing_and_to_the_end_gives_the_data():
    rng = np.random.default_rng(0)
    x, data, noise = (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for _ in range(3))
    t = jnp.full((2, 3, 1), 0.7)
    np.testing.assert_allclose(step_back(x, data, noise, t, t), x, atol=1e-5)
    np.testing.assert_allclose(step_back(x, data, noise, t, 0 * t), data, atol=1e-6)


def test_the_teacher_is_guided_within_its_interval_alone():
    settings = DistillSettings(guidance=3.0, guidance_min=0.4, guidance_max=0.95)
    np.testing.assert_array_equal(guidance_at(jnp.float32([0.1, 0.4, 0.9, 0.99]), settings), [1, 3, 3, 1])


@pytest.fixture(scope="module")
def two_points():
    """Data of two values, -1 and 1, noised to t and stepped back to s; the teacher's data at s are known."""
    rng = np.random.default_rng(0)
    data, noise, renewed = rng.choice([-1.0, 1.0], 200_000), *rng.normal(size=(2, 200_000))
    t, s = 0.8, 0.6
    return data, (1 - t) * data + t * noise, renewed, t, s


def mean_pull(two_points, offset):
    """The mean gradient at the student's data, with the critic that these data lead to."""
    data, x, renewed, t, s = two_points
    made = data + offset  # the true data are a sample of what x may have come from: an exact student
    back = np.asarray(step_back(x, made, renewed, t, s))
    expected = np.tanh((1 - s) * back / s**2)
    # The best critic predicts the mean of what was made, for each value of x at s.
    edges = np.quantile(back, np.linspace(0, 1, 101)[1:-1])
    bins = np.digitize(back, edges)
    critic = (np.bincount(bins, made) / np.bincount(bins))[bins]

    def loss(made):
        return jnp.sum(moment_loss(made[:, None], critic[:, None], expected[:, None], s))

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(made, jnp.float32)))
    return gradient.mean(), np.abs(np.bincount(bins, gradient) / np.bincount(bins)).max()


def test_an_exact_student_stays_where_it_is(two_points):
    mean, largest = mean_pull(two_points, 0.0)
    assert abs(mean) < 2e-3 and largest < 0.05  # 2,000 samples of +-1 in each bin


@pytest.mark.parametrize("offset", [-0.3, 0.3])
def test_a_student_that_is_off_is_pulled_back(two_points, offset):
    mean, _ = mean_pull(two_points, offset)
    assert np.sign(mean) == np.sign(offset) and abs(mean) > 0.02


def test_critic_and_moments_teach_their_own_net_alone():
    values = [jnp.full((1, 1, 1), x) for x in (1.0, 2.0, 4.0)]
    student, critic, teacher = values
    grads = jax.grad(lambda *nets: jnp.sum(critic_error(*nets, 0.5)), argnums=(0, 1, 2))(critic, student, teacher)
    assert [float(g[0, 0, 0]) for g in grads] == [2 * (1 - 2) / 0.25, 0, 0]
    grads = jax.grad(lambda *nets: jnp.sum(moment_loss(*nets, 0.5)), argnums=(0, 1, 2))(student, critic, teacher)
    assert [float(g[0, 0, 0]) for g in grads] == [0.5 * (2 - 4), 0, 0]
