import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from sora_jax.config.schema import Settings
from sora_jax.core.mesh import AXES
from sora_jax.core.patches import PatchBatch
from sora_jax.diffusion.flow import flow_errors
from sora_jax.models.layers.params import RngKeys, abstract_params, bind, init_params
from sora_jax.models.layers.rope import apply_rope, rope_angles, rope_cos_sin
from sora_jax.models.text_encoder import TextEncoder, relative_buckets
from sora_jax.models.video_model import VideoModel


def random_params(settings, seed=0):
    """Parameters without the zeros of a fresh model: those would hide what lies behind them."""
    shapes = abstract_params(VideoModel, settings)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)


def placed(params, settings):
    shapes = abstract_params(VideoModel, settings)
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding.spec), params, shapes)


@functools.partial(jax.jit, static_argnums=0)
def velocity_and_errors(settings, params, batch, noise, times):
    model = bind(VideoModel, settings, params)
    embedded = model.embed_text(batch)
    velocities = []

    def velocity(patches, table, time_index):
        velocities.append(model.velocity(embedded, patches, table, time_index))
        return velocities[-1]

    errors, _ = flow_errors(velocity, batch, noise, times)
    return velocities[0], errors


def test_packed_equals_alone(one_device):
    settings = tiny.SETTINGS
    params = random_params(settings)
    rng = np.random.default_rng(0)
    clips = [tiny.random_clip(rng, grid, settings) for grid in [(2, 2, 3), (1, 3, 2), (3, 2, 1)]]
    packed = tiny.pack([clips], settings)
    noise = rng.normal(size=packed.patches.shape).astype(np.float32)
    times = np.asarray([[0.2, 0.5, 0.9]], np.float32)
    velocity, errors = velocity_and_errors(settings, params, packed, noise, times)
    start = 0
    for clip, t in zip(clips, times[0], strict=True):
        n = len(clip[1])
        alone_noise = np.zeros_like(noise)
        alone_noise[:, :n] = noise[:, start : start + n]
        alone = velocity_and_errors(
            settings, params, tiny.pack([[clip]], settings), alone_noise, np.asarray([[t, 0, 0]], np.float32)
        )
        for got, wanted in zip(alone, (velocity, errors), strict=True):
            np.testing.assert_allclose(got[:, :n], wanted[:, start : start + n], atol=1e-5)
        start += n


def test_a_patch_does_not_see_other_clips_or_padding(one_device):
    settings = tiny.SETTINGS
    params = random_params(settings)
    batch = tiny.on_mesh(tiny.random_batch(0))

    def first_clip(patches, text):
        model = bind(VideoModel, settings, params)
        velocity = model.velocity(batch.replace(text=text), patches, jnp.full((8, 4), 0.5), batch.segment_ids)
        return jnp.sum(jnp.where(batch.segment_ids == 1, jnp.sum(velocity**2, -1), 0))

    text = jax.random.normal(jax.random.key(0), (*batch.text.shape, settings.text.width))
    grads = jax.jit(jax.grad(first_clip, argnums=(0, 1)))(batch.patches, text)
    for grad, segment_ids in zip(grads, (batch.segment_ids, batch.text_segment_ids), strict=True):
        norms = np.abs(grad).sum(-1)
        assert np.all(norms[segment_ids == 1] > 0)
        np.testing.assert_array_equal(norms[segment_ids != 1], 0)


def test_a_14b_step_type_checks_on_4096_chips_with_each_big_parameter_sharded():
    settings = tiny.change(
        Settings(),
        transformer={"width": 5120, "heads": 40, "mlp": 13824, "layers": 40},
        text={"layers": 2},
    )
    types = (jax.sharding.AxisType.Explicit,) * len(AXES)
    mesh = jax.sharding.AbstractMesh((16, 64, 1, 4, 1), AXES, axis_types=types)
    B, N, S = 1024, 32768, 512
    P = jax.P(("data", "fsdp"), "ulysses")

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(mesh, P))

    batch = PatchBatch(
        patches=array((B, N, 64), jnp.float32),
        positions=array((B, N, 3), jnp.int32),
        segment_ids=array((B, N), jnp.int32),
        conditioning_mask=array((B, N), bool),
        text=array((B, S), jnp.int32),
        text_segment_ids=array((B, S), jnp.int32),
    )

    def loss(params, batch):
        noise = jnp.zeros_like(batch.patches)
        times = jnp.full((B, 1), 0.5, out_sharding=jax.P(("data", "fsdp")))
        return jnp.mean(velocity_and_errors.__wrapped__(settings, params, batch, noise, times)[1])

    with jax.sharding.use_abstract_mesh(mesh):
        params = abstract_params(VideoModel, settings)
        grads = jax.eval_shape(jax.grad(loss), params, batch)
    assert sum(x.size for x in jax.tree.leaves(params["transformer"])) == 14_288_491_584
    for path, leaf in jax.tree.leaves_with_path(params):
        chips = mesh.size / np.prod([1, *(mesh.shape[a] for a in jax.tree.leaves(tuple(leaf.sharding.spec)) if a)])
        if leaf.size > 2**22:
            assert leaf.size * 4 * chips / mesh.size < 2**30, f"{jax.tree_util.keystr(path)} {leaf.sharding.spec}"
            assert chips <= mesh.size / 64, f"{jax.tree_util.keystr(path)} is not sharded: {leaf.sharding.spec}"
    assert jax.tree.map(lambda x: x.sharding.spec, grads) == jax.tree.map(lambda x: x.sharding.spec, params)


def test_keys_are_those_that_flax_draws():
    key = jax.random.key(3)
    ours, flax = RngKeys(key), nnx.Rngs(key)
    assert all(ours.params() == flax.params() for _ in range(3))


def test_abstract_parameters_are_the_fresh_ones_as_they_lie_on_each_mesh():
    for sizes in ({}, {"fsdp": 2, "tensor": 2}, {}):
        with jax.set_mesh(tiny.mesh_of(**sizes)):
            abstract = abstract_params(TextEncoder, tiny.SETTINGS.text)
            fresh = jax.jit(lambda key: init_params(TextEncoder, tiny.SETTINGS.text, key))(jax.random.key(0))
            for found, expected in zip(*map(jax.tree.leaves, (abstract, fresh)), strict=True):
                assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
                assert expected.sharding.is_equivalent_to(
                    jax.NamedSharding(jax.sharding.get_mesh(), found.sharding.spec), expected.ndim
                )
        abstract.clear()  # is the caller's own


@pytest.mark.parametrize("K, pairs", [(128, (22, 21, 21)), (12, (2, 2, 2)), (16, (4, 2, 2))])
def test_rotary_attention_depends_on_relative_positions_of_each_axis(K, pairs):
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, K)).astype(np.float32)

    def logit(q_position, k_position):
        angles = [rope_angles(jnp.asarray([[p]]), K) for p in (q_position, k_position)]
        assert angles[0].shape == (1, 1, sum(pairs))
        rope = [rope_cos_sin(a) for a in angles]
        return float(jnp.sum(apply_rope(q, rope[0]) * apply_rope(k, rope[1])))

    here = logit((3, 4, 5), (1, 1, 1))
    np.testing.assert_allclose(logit((13, 24, 35), (11, 21, 31)), here, rtol=1e-3)
    for moved in ((4, 4, 5), (3, 5, 5), (3, 4, 6)):
        assert abs(logit(moved, (1, 1, 1)) - here) > 1e-3
    # The first pair of each axis turns by one radian a step.
    angles = rope_angles(jnp.asarray([[[1, 2, 3]]]), K)[0, 0]
    np.testing.assert_allclose(angles[np.cumsum((0, *pairs[:2]))], [1, 2, 3])


def test_captions_in_one_sequence_do_not_see_each_other(one_device):
    settings = tiny.SETTINGS.text
    params = init_params(TextEncoder, settings, jax.random.key(0))
    embed = jax.jit(bind(TextEncoder, settings, params))
    together = embed(jnp.asarray([[5, 6, 7, 8, 9, 1, 0]]), jnp.asarray([[1, 1, 1, 2, 2, 2, 0]]))
    alone = embed(jnp.asarray([[8, 9, 1, 0, 0, 0, 0]]), jnp.asarray([[1, 1, 1, 0, 0, 0, 0]]))
    np.testing.assert_allclose(together[:, 3:6], alone[:, :3], atol=1e-5)
    np.testing.assert_array_equal(together[:, 6], 0)


def test_relative_buckets_are_exact_near_and_logarithmic_far():
    row = np.asarray(relative_buckets(np.arange(-150, 150), 32, 128))
    np.testing.assert_array_equal(row[150 - 7 : 151], [7, 6, 5, 4, 3, 2, 1, 0])  # keys before the query
    np.testing.assert_array_equal(row[151:158], 16 + np.arange(1, 8))  # keys after it
    assert row[0] == 15 and row[299] == 31  # all that is farther than max_distance
    assert row[150 + 8] == 24 and row[150 + 11] == 24 and row[150 + 12] == 25
