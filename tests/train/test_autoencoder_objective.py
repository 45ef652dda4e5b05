import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
from perceptual_cases import pictures, random_lpips

from sora_jax.config.schema import LossSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import place
from sora_jax.interop.lpips import load_lpips
from sora_jax.models.autoencoder.discriminator import Discriminator, DiscriminatorSettings
from sora_jax.models.autoencoder.lpips import lpips, video_lpips
from sora_jax.models.layers.params import bind, init_params
from sora_jax.train.objectives.autoencoder import AutoencoderObjective
from sora_jax.train.optimizer import clip_by_norms, make_optimizer
from sora_jax.train.state import init_state
from sora_jax.train.step import accumulate, make_step

ADVERSARIAL = {"adversarial": 0.5, "adversarial_start": 10, "discriminator_width": 4, "mse": 1.0}


def settings_of(**loss):
    """Two levels are enough here, and compile sooner."""
    autoencoder = {"multipliers": (1, 1), "temporal": (True,), "patch": 4}
    return tiny.change(tiny.SETTINGS, loss=loss, autoencoder=autoencoder)


def batch_of(frames=5):
    return np.random.default_rng(0).integers(0, 256, (4, frames, 16, 16, 3), np.uint8)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(objective, parts, params, frozen, batch, step):
    drawn = objective.draw(jax.random.key(3), batch, step)
    grads, sums, weight = accumulate(objective, params, frozen, (batch, drawn), parts)
    return jax.tree.map(lambda x: x / weight, (grads, sums))


def grads_of(settings, *, parts=1, frames=5):
    """Gradients and sums of one batch on the current mesh, divided by its weight."""
    objective = AutoencoderObjective(settings)
    params = jax.jit(objective.init)(jax.random.key(0))
    batch = place(batch_of(frames), objective.axes)
    return jax.device_get(run(objective, parts, params, objective.frozen_params(), batch, 10))


def assert_trees_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    safetensors.numpy.save_file(random_lpips(), path)
    return str(path)


def test_discriminator_judges_each_clip_for_itself_and_takes_single_frames():
    settings = DiscriminatorSettings(width=4, dtype="float32")
    params = init_params(Discriminator, settings, jax.random.key(0))
    judge = jax.jit(lambda x: bind(Discriminator, settings, params)(x))
    video = np.random.default_rng(0).uniform(-1, 1, (3, 5, 16, 24, 3)).astype(np.float32)
    scores = judge(video)
    assert scores.shape == (3, 2, 2, 3)
    np.testing.assert_allclose(judge(video[1:2])[0], scores[1], atol=1e-6)
    assert judge(video[:, :1]).shape == (3, 1, 2, 3)


def test_the_adversary_pulls_as_hard_as_its_share_of_the_reconstruction(one_device):
    """At the reconstructed pixels of each clip: the gradient is the reconstruction's plus one of 0.5 its norm."""
    from sora_jax.train.objectives.autoencoder import _adversarial

    settings = DiscriminatorSettings(width=4, dtype="float32")
    params = init_params(Discriminator, settings, jax.random.key(0))
    rng = np.random.default_rng(0)
    video, made = (rng.uniform(-1, 1, (3, 5, 16, 16, 3)).astype(np.float32) for _ in range(2))

    def reconstruction(x):
        return jnp.mean(jnp.square(x - video), axis=(1, 2, 3, 4)), {}

    def loss(made):
        judge = lambda params: bind(Discriminator, settings, params)  # noqa: E731
        return jnp.sum(_adversarial(judge, params, reconstruction, video, made, jnp.full(3, 0.5))[0])

    alone = jax.grad(lambda x: jnp.sum(reconstruction(x)[0]))(made)
    both = jax.jit(jax.grad(loss))(made)
    ratio = np.linalg.norm((both - alone).reshape(3, -1), axis=1) / np.linalg.norm(alone.reshape(3, -1), axis=1)
    np.testing.assert_allclose(ratio, 0.5, rtol=1e-4)


@pytest.mark.slow
def test_before_its_start_the_adversary_learns_and_does_not_pull(one_device):
    plain, sums = grads_of(settings_of(mse=1.0))
    early, early_sums = grads_of(settings_of(**ADVERSARIAL | {"adversarial_start": 11}))
    late, _ = grads_of(settings_of(**ADVERSARIAL))
    assert_trees_close(early["autoencoder"], plain["autoencoder"], 1e-6)
    assert early_sums["l1"] == pytest.approx(sums["l1"], rel=1e-5)
    assert max(np.abs(x).max() for x in jax.tree.leaves(early["discriminator"])) > 1e-3
    # The pull changes the decoder, and nothing that the discriminator learns.
    assert_trees_close(late["discriminator"], early["discriminator"], 1e-6)
    kernels = [tree["autoencoder"]["decoder"]["conv_out"]["kernel"] for tree in (early, late)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_micro_batches_sum_to_the_whole_batch_with_an_adversary(one_device):
    whole, split = (grads_of(settings_of(**ADVERSARIAL), parts=parts) for parts in (1, 2))
    assert_trees_close(split, whole, 1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_all_terms_are_the_same_on_a_mesh(weights):
    settings = settings_of(**ADVERSARIAL, perceptual=0.5, perceptual_weights=weights)
    found = []
    for sizes in ({"data": 1}, {"data": 2, "fsdp": 2, "ulysses": 2}):
        with jax.set_mesh(tiny.mesh_of(**sizes)):
            found.append(grads_of(settings, frames=1))
    assert found[0][1]["perceptual"] > 0.1
    # Gradients are up to 1, and the adaptive weight is a ratio of sums that a mesh adds in another order.
    assert_trees_close(found[1], found[0], 1e-4)


@pytest.mark.slow
def test_discriminator_learns_to_tell_clips_from_reconstructions(one_device):
    settings = settings_of(**ADVERSARIAL | {"adversarial_start": 100})  # nobody misleads it yet
    objective = AutoencoderObjective(settings)
    optimizer = make_optimizer(settings.optimizer, 40, objective.players)
    step = make_step(objective, optimizer, settings)
    state = init_state(objective, optimizer, jax.random.key(0))
    losses = []
    for _ in range(40):
        state, metrics = step(state, {}, place(batch_of(), objective.axes))
        losses.append(float(metrics["discriminator"]))
    assert metrics["gradient_norm"] == pytest.approx(
        np.hypot(metrics["gradient_norm_autoencoder"], metrics["gradient_norm_discriminator"]), rel=1e-5
    )
    assert losses[0] == pytest.approx(2, abs=1)  # the hinge loss of one that knows nothing
    assert np.mean(losses[-5:]) < 1


def test_each_player_is_clipped_by_its_own_norm(one_device):
    """A discriminator with a huge gradient leaves the autoencoder's update as it is."""
    clip = clip_by_norms(1.0, 2.0, ("autoencoder", "discriminator"))
    small, huge = {"kernel": jnp.full(4, 0.25)}, {"kernel": jnp.full(4, 500.0)}
    state = clip.init(None)
    for _ in range(12):
        clipped, state = clip.update({"autoencoder": small, "discriminator": huge}, state)
    np.testing.assert_allclose(clipped["autoencoder"]["kernel"], 0.25)
    np.testing.assert_allclose(jnp.linalg.norm(clipped["discriminator"]["kernel"]), 1.0, rtol=1e-6)
    together, _ = clip_by_norms(1.0, 2.0).update(
        {"autoencoder": small, "discriminator": huge}, clip_by_norms(1.0, 2.0).init(None)
    )
    assert together["autoencoder"]["kernel"].max() < 1e-3  # what one norm for both would do


@pytest.mark.slow
def test_lpips_is_zero_for_equal_pictures_and_grows_with_the_change(weights):
    params = load_lpips(weights)
    a, b = pictures()
    assert np.abs(lpips(params, a, a)).max() == 0
    near, far = lpips(params, a, b)
    assert 1e-3 < near < far / 2
    # A clip's is the mean of its frames'.
    clip = video_lpips(params, a[None], b[None])
    np.testing.assert_allclose(clip, [(near + far) / 2], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("net.slice3.12.weight"), "'net.slice3.12.weight' is missing"),
        (lambda t: t.update({"net.slice9.1.weight": np.zeros(1, np.float32)}), "not of LPIPS with VGG-16"),
        (lambda t: t.update({"lin2.model.1.weight": np.zeros((1, 9, 1, 1), np.float32)}), "which does not fit"),
    ],
)
def test_lpips_weights_that_do_not_fit_are_named(tmp_path, change, message):
    tensors = random_lpips()
    change(tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "lpips.safetensors")
    with pytest.raises(InputError, match=message):
        load_lpips(tmp_path / "lpips.safetensors")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"perceptual": 1.0}, "set both or neither"),
        ({"perceptual_weights": "lpips.safetensors"}, "set both or neither"),
        ({"adversarial_start": 10}, "needs config.loss.adversarial"),
        ({"adversarial": -1.0}, "must be at least 0"),
    ],
)
def test_losses_that_would_be_ignored_are_refused(loss, message):
    with pytest.raises(InputError, match=message):
        tiny.change(tiny.SETTINGS, loss=LossSettings(**loss).__dict__)
