import jax
import numpy as np
import optax
import pytest
import tiny
from tiny_run import Run

from sora_jax.config.schema import OptimizerSettings
from sora_jax.core.errors import InputError
from sora_jax.train.objectives.flow import FlowObjective
from sora_jax.train.optimizer import clip_by_norms, learning_rate, make_optimizer
from sora_jax.train.step import train_step


@pytest.fixture(scope="module")
def run():
    with jax.set_mesh(tiny.mesh_of()):
        yield Run()


# One update of the tiny model on the first random batch. If a change of the model, the flow, the optimizer or
# their randomness is meant, put the new metrics here: `pytest tests/train/test_step.py -k golden` prints them.
GOLDEN = {"loss": 1.927576, "gradient_norm": 0.415456, "learning_rate": 0.0005, "skipped": 0.0}


def test_golden_first_step_metrics(run):
    _, metrics = run.go(1)
    for name, value in GOLDEN.items():
        message = f"{name} is {metrics[name]:.6f}, not {value}: if that is meant, update GOLDEN"
        assert metrics[name] == pytest.approx(value, rel=1e-4), message


def test_step_is_pure_same_inputs_same_bits(run):
    first, second = run.go(2), run.go(2)
    jax.tree.map(np.testing.assert_array_equal, first[0], second[0])
    assert first[1] == second[1]


def test_another_step_draws_other_noise(run):
    # Without learning, a batch seen again differs in nothing but the noise and the times.
    settings = tiny.change(tiny.SETTINGS, optimizer={"learning_rate": 0.0})
    still = Run(settings)
    losses = [still.go(n, batches=[0] * n)[1]["loss"] for n in (1, 2)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_an_update_that_is_not_finite_is_skipped_and_the_next_goes_on(run):
    def state_after(*batches):
        state = run.fresh()
        for number in batches:
            batch = tiny.random_batch(abs(number))
            if number < 0:  # one element of one clip
                batch.patches[0, 0, 0] = np.nan
            state, metrics = run.step(state, {}, tiny.on_mesh(batch))
        return jax.device_get(state), {name: float(x) for name, x in metrics.items()}

    before, _ = state_after(3)
    after, metrics = state_after(3, -4)
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"])
    assert after.step == 2
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=before.step), before)
    later, metrics = state_after(3, -4, 5)
    assert later.step == 3 and metrics["skipped"] == 0 and np.isfinite(metrics["loss"])
    assert metrics["learning_rate"] == pytest.approx(1e-3)  # the second of two updates of warm-up
    assert not jax.tree.all(jax.tree.map(np.array_equal, later.params, before.params))


def norms_after_clipping(norms, **settings):
    clip = clip_by_norms(**{"largest": 1e9, "spike": 0.0} | settings)
    grads, state = {"a": np.float32([3, 0]), "b": np.float32([[4]])}, clip.init(None)  # of norm 5

    def step(state, norm):
        updates, state = clip.update(jax.tree.map(lambda x: x * norm / 5, grads), state)
        return state, optax.tree.norm(updates)

    state, clipped = jax.jit(lambda: jax.lax.scan(step, state, np.float32(norms)))()
    return clipped.tolist(), state


def test_spikes_of_the_gradient_are_clipped_by_its_running_mean():
    usual = [1.0, 1.2, 0.8] * 10
    clipped, state = norms_after_clipping([*usual, 100.0, 1.0], spike=3.0)
    np.testing.assert_allclose(clipped, [*usual, 3.0, 1.0], rtol=0.05)
    assert clipped[30] < 3.1 and state.updates == 32
    # Without a factor nothing is clipped, but the mean is kept.
    free, state = norms_after_clipping([*usual, 100.0], spike=0.0)
    assert free[30] == pytest.approx(100.0) and float(state.mean) > 1
    assert norms_after_clipping([1.0, 7.0], largest=2.0)[0] == pytest.approx([1.0, 2.0])


def test_norms_that_stay_high_are_let_through_in_time():
    clipped, _ = norms_after_clipping([1.0] * 20 + [20.0] * 300, spike=2.0)
    assert clipped[20] == pytest.approx(2.0, rel=0.01) and clipped[-1] == pytest.approx(20.0)


def test_micro_batches_give_the_update_of_the_whole_batch(run):
    whole, whole_metrics = run.go(2)
    split, split_metrics = Run(tiny.change(tiny.SETTINGS, train={"accumulate": 4})).go(2)
    np.testing.assert_allclose(split_metrics["loss"], whole_metrics["loss"], rtol=1e-5)
    # Adam divides by the gradient's own size: where that is rounding noise, so is the update. lr is 1e-3.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), split.params, whole.params)


def test_average_follows_the_parameters_and_warms_up(run):
    fresh = jax.device_get(run.fresh())
    state, _ = run.go(1)
    # At the first update the decay is (1 + 0) / (10 + 0): nine tenths of the way to the new parameters.
    expected = jax.tree.map(lambda a, b: a + 0.9 * (b - a), fresh.ema, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema, expected)


def test_learning_rate_warms_up_and_follows_its_schedule():
    constant = learning_rate(OptimizerSettings(learning_rate=1.0, warmup_steps=10), 100)
    np.testing.assert_allclose([constant(n) for n in (1, 5, 10, 100)], [0.1, 0.5, 1, 1], rtol=1e-6)
    cosine = learning_rate(OptimizerSettings(learning_rate=1.0, warmup_steps=10, schedule="cosine"), 110)
    np.testing.assert_allclose([cosine(n) for n in (5, 10, 60, 110)], [0.5, 1, 0.55, 0.1], rtol=1e-5)
    falling = OptimizerSettings(learning_rate=1.0, warmup_steps=10, schedule="wsd", decay_steps=40)
    wsd = learning_rate(falling, 110)
    np.testing.assert_allclose([wsd(n) for n in (5, 10, 70, 90, 110)], [0.5, 1, 1, 0.55, 0.1], rtol=1e-5)
    with pytest.raises(InputError, match="wsd, which needs it"):
        OptimizerSettings(schedule="wsd")


def test_only_weight_matrices_decay(one_device):
    settings = tiny.change(tiny.SETTINGS, optimizer={"weight_decay": 0.5, "warmup_steps": 0})
    optimizer = make_optimizer(settings.optimizer, 10)
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    updates, _ = optimizer.update(jax.tree.map(np.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * settings.optimizer.learning_rate)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_muon_gives_every_direction_of_a_matrix_the_same_step(one_device):
    """As large as AdamW's: 0.2 of the learning rate for the root mean square of a square matrix's update."""
    settings = OptimizerSettings(name="muon", learning_rate=1.0, warmup_steps=0, weight_decay=0.0, clip_norm=1e9)
    optimizer = make_optimizer(settings, 10)
    rng = np.random.default_rng(0)
    shapes = {"linear": (32, 32), "stack": (3, 32, 32), "conv": (3, 3, 3, 8, 24)}
    params = {name: {"kernel": rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}
    params["bias"] = np.ones(8, np.float32)
    grads = jax.tree.map(lambda x: x * np.float32(1e-3), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    matrices = [
        updates["linear"]["kernel"],
        *updates["stack"]["kernel"],
        updates["conv"]["kernel"].reshape(-1, 24),
    ]
    for matrix in matrices:
        values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * max(matrix.shape) ** 0.5)
        # The smallest of a square random matrix are all but 0, and take more iterations to reach 1.
        assert np.quantile(values, 0.1) > 0.6 and values.max() < 1.4, values
    assert (
        len(set(updates["bias"].tolist())) == 1 and -2 < updates["bias"][0] < -0.5
    )  # AdamW's first step: the sign


@pytest.mark.slow
def test_muon_on_a_mesh_equals_one_device():
    optimizer = make_optimizer(OptimizerSettings(name="muon", learning_rate=1.0, warmup_steps=0), 10)
    found = []
    for sizes in ({"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}):
        with jax.set_mesh(tiny.mesh_of(**sizes)):
            params = jax.jit(FlowObjective(tiny.SETTINGS).init)(jax.random.key(0))["transformer"]["blocks"]
            # Weights stand in for gradients: they are laid out as these are.
            found.append(jax.device_get(jax.jit(optimizer.update)(params, optimizer.init(params), params)[0]))
            if len(found) == 2:
                assert any("fsdp" in str(x.sharding.spec) for x in jax.tree.leaves(params))
    # Four iterations on products of float32, summed in another order; the updates are about 0.2.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *found)


@pytest.mark.slow
def test_overfitting_eight_clips_drives_the_loss_down(one_device):
    """The positive control: a model that can't learn eight clips by heart has a fault, not too little time."""
    settings = tiny.change(
        tiny.SETTINGS,
        data={"sequence_length": 8, "text_length": 4, "clips_per_sequence": 1},
        transformer={"width": 96, "mlp": 192},
        optimizer={"learning_rate": 6e-3, "warmup_steps": 20},
        train={"steps": 420},
    )
    rng = np.random.default_rng(0)
    clips = [[tiny.random_clip(rng, (2, 2, 2), settings)] for _ in range(8)]
    run, batch = Run(settings), tiny.on_mesh(tiny.pack(clips, settings))
    state = run.fresh()
    losses = []
    for _ in range(settings.train.steps):
        state, metrics = run.step(state, {}, batch)
        losses.append(float(metrics["loss"]))
    # Noise and data both have unit variance: 2 for a model that knows nothing, 1.73 for one that knows no clip.
    assert np.mean(losses[:5]) > 1.5
    assert np.mean(losses[-50:]) < 0.5, np.mean(losses[-50:])


def test_train_step_is_plain_maths_without_a_jit(run):
    shapes = jax.eval_shape(
        lambda: train_step(
            run.objective, run.optimizer, run.settings, run.fresh(), {}, tiny.on_mesh(tiny.random_batch(0))
        )
    )
    assert set(shapes[1]) == set(GOLDEN)
