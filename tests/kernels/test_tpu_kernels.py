"""The attention kernels for TPUs, run step by step: exact at every width, and no more work than clips ask for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.kernels import ops
from sora_jax.kernels.ring import ring_attention
from sora_jax.kernels.tpu import backward, blocks, forward, pairs, rotary
from sora_jax.kernels.tpu.attention import make_kernel

BLOCK = 128


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "MAX_BLOCK", BLOCK)


def segments(*lengths, total):
    """One row of clips of these lengths, one after the other, then padding: [1, total] int32."""
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return np.pad(ids, (0, total - len(ids))).astype(np.int32)[None]


def arrays(N, M, K, *, scale=1.0, heads=1, dtype=np.float32):
    """q, k, v and the gradient of the output."""
    rng = np.random.default_rng(0)
    q, k, v, dy = (rng.normal(size=(1, n, heads, K)) for n in (N, M, M, N))
    return [jnp.asarray(x, dtype) for x in (scale * q, k, v, dy)]


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(kernel, q, k, v, dy, *segment_ids):
    y, vjp = jax.vjp(lambda q, k, v: ring_attention(kernel, q, k, v, *segment_ids), q, k, v)
    return y, *vjp(dy)


def run(*inputs):
    return [np.asarray(x, np.float64) for x in with_gradients(make_kernel(interpret=True), *inputs)]


def reference(q, k, v, dy, q_ids, kv_ids):
    """The same in float64, with formulas."""
    q, k, v, dy = (np.asarray(x, np.float64) for x in (q, k, v, dy))
    seen = ((q_ids[:, :, None] == kv_ids[:, None]) & (q_ids > 0)[:, :, None])[:, None]
    logits = np.einsum("bnak,bmak->banm", q, k) * q.shape[-1] ** -0.5
    logits = np.where(seen, logits, -1e300)
    weights = np.where(seen, np.exp(logits - logits.max(-1, keepdims=True)), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    of_weights = np.einsum("bnak,bmak->banm", dy, v)
    of_logits = weights * (of_weights - (of_weights * weights).sum(-1, keepdims=True)) * q.shape[-1] ** -0.5
    return (
        np.einsum("banm,bmak->bnak", weights, v),
        np.einsum("banm,bmak->bnak", of_logits, k),
        np.einsum("banm,bnak->bmak", of_logits, q),
        np.einsum("banm,bnak->bmak", weights, dy),
    )


def assert_near(found, expected, *tolerances):
    """Largest difference over the largest value, at most the tolerance of outputs, of gradients."""
    for n, (ours, exact) in enumerate(zip(found, expected, strict=True)):
        assert np.abs(ours - exact).max() < tolerances[n > 0] * np.abs(exact).max()


# Lengths that are no multiple of a block; a clip without keys, keys without a clip, padding.
CROSS = (
    segments(100, 40, 60, total=213),
    np.where(segments(30, 70, total=131) == 2, 3, segments(30, 70, total=131)),
)


@pytest.mark.parametrize(
    "K", [64, pytest.param(96, marks=pytest.mark.slow), 128, pytest.param(256, marks=pytest.mark.slow)]
)
def test_kernels_are_exact_at_every_width_and_length(K):
    inputs = (*arrays(213, 131, K), *CROSS)
    found = run(*inputs)
    assert_near(found, reference(*inputs), 1e-5, 1e-4)
    np.testing.assert_array_equal(found[0][CROSS[0] == 2], 0)  # sees no key
    np.testing.assert_array_equal(found[0][CROSS[0] == 0], 0)  # padding


def test_logits_beyond_the_bound_have_their_maximum_subtracted():
    """Without it exp(500) would be infinite."""
    inputs = (*arrays(213, 131, 64, scale=100), *CROSS)
    assert np.abs(np.einsum("bnak,bmak->bnm", *inputs[:2])).max() / 8 > 300
    found, expected = run(*inputs), reference(*inputs)
    assert_near(found, expected, 1e-4, 1e-3)  # float32 rounds logits of 500 to 3e-5


def test_bfloat16_is_rounded_a_few_times_and_no_more():
    inputs = (*arrays(213, 131, 128, dtype=jnp.bfloat16), *CROSS)
    assert_near(run(*inputs), reference(*inputs), 0.01, 0.01)


def test_a_packed_row_equals_its_clips_alone():
    lengths = (128, 150, 77)
    ids = segments(*lengths, total=400)
    inputs = arrays(400, 400, 64)
    packed, start = run(*inputs, ids, ids), 0
    for length in lengths:
        part = slice(start, start + length)
        one = np.ones((1, length), np.int32)
        alone = run(*(x[:, part] for x in inputs), one, one)
        assert_near([x[:, part] for x in packed], alone, 1e-6, 1e-6)
        start += length


@pytest.mark.slow
def test_a_row_too_long_for_fast_memory_is_cut_into_parts():
    ids = segments(200, 180, total=400)
    q, k, v, dy = (
        jnp.swapaxes(jnp.pad(x, ((0, 0), (0, 112), (0, 0), (0, 0))), 1, 2) for x in arrays(400, 400, 64)
    )
    ids = jnp.asarray(np.pad(np.where(ids > 0, ids, -1), ((0, 0), (0, 112)), constant_values=-1))
    kv_ids = jnp.where(ids > 0, ids, -2)
    whole = blocks.choose_blocks(q, k)._replace(q=BLOCK, kv=BLOCK)
    y, log_total = forward.forward(q, k, v, ids, kv_ids, blocks=whole, interpret=True)
    found = [
        backward.backward(
            (q, k, v, ids, kv_ids), *(y, log_total, dy), blocks=whole._replace(resident=resident), interpret=True
        )
        for resident in (512, 3 * BLOCK, BLOCK)
    ]
    for other in found[1:]:
        assert_near([np.asarray(x) for x in other], [np.asarray(x) for x in found[0]], 1e-6, 1e-6)


def steps(q_ids, kv_ids, block=BLOCK, *, by_query=True):
    """(row, block of queries, block of keys) and flags of each step."""
    places, flags, number = map(
        np.asarray, pairs.pairs(jnp.asarray(q_ids), jnp.asarray(kv_ids), block, block, by_query=by_query)
    )
    places, flags = places[:number], flags[:number]
    return np.stack([pairs.row(places), pairs.q_block(places), pairs.kv_block(places)], 1), flags


@pytest.mark.parametrize("by_query", [True, False])
def test_packed_clips_cost_the_sum_of_their_squares(by_query):
    """8 clips of 4,096 in a row of 32,768, in the blocks of a TPU; and 6 of any length, with padding."""
    ids = segments(*[4096] * 8, total=32768)
    places, flags = steps(ids, ids, 1024, by_query=by_query)
    assert len(places) * 1024**2 == 8 * 4096**2 and (flags & pairs.WHOLE > 0).all()
    lengths = (9000, 4500, 4100, 6000, 3000, 2000)
    ids = segments(*lengths, total=32768)
    places, flags = steps(ids, ids, 1024, by_query=by_query)
    computed = (flags & (pairs.WHOLE | pairs.PARTLY)) > 0
    assert computed.sum() * 1024**2 < 1.5 * sum(n**2 for n in lengths) < 32768**2 / 4


def test_padding_costs_a_step_without_work_for_each_block():
    ids = segments(300, total=8 * BLOCK)
    places, flags = steps(ids, ids)
    computed = (flags & (pairs.WHOLE | pairs.PARTLY)) > 0
    assert computed.sum() == 9 and len(places) == 9 + 5
    assert set(map(tuple, places[~computed][:, :2])) == {(0, block) for block in range(3, 8)}


@pytest.mark.parametrize("by_query", [True, False])
def test_every_block_has_a_first_and_a_last_step(by_query):
    q_ids, kv_ids = (
        np.concatenate([segments(*lengths, total=512) for lengths in ((100, 412), (500,), (64, 64))])
        for _ in range(2)
    )
    places, flags = steps(q_ids, kv_ids, by_query=by_query)
    own = places[:, [0, 1 if by_query else 2]]
    assert {tuple(x) for x in own} == {(row, block) for row in range(3) for block in range(4)}
    changes = np.any(own[1:] != own[:-1], axis=1)
    np.testing.assert_array_equal(flags & pairs.FIRST > 0, [True, *changes])
    np.testing.assert_array_equal(flags & pairs.LAST > 0, [*changes, True])
    np.testing.assert_array_equal(flags & pairs.LAST_OF_ROW > 0, [*(places[1:, 0] != places[:-1, 0]), True])
    # What one of a pair sees: all pairs that share a segment, and no other has work.
    expected = {
        (row, i, j)
        for row in range(3)
        for i in range(4)
        for j in range(4)
        if set(q_ids[row, i * BLOCK : (i + 1) * BLOCK]) & set(kv_ids[row, j * BLOCK : (j + 1) * BLOCK]) - {0}
    }
    assert {tuple(map(int, x)) for x in places[(flags & (pairs.WHOLE | pairs.PARTLY)) > 0]} == expected


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_rotation_by_a_product_is_that_by_halves(dtype):
    x, dy = (jnp.asarray(array, dtype) for array in np.random.default_rng(0).normal(size=(2, 2, 6, 3, 16)))
    angles = jnp.asarray(np.random.default_rng(1).uniform(0, 9, size=(2, 6, 8)), jnp.float32)

    def with_gradient(rotate):
        y, vjp = jax.vjp(lambda x: rotate(x, jnp.cos(angles), jnp.sin(angles)), x)
        return y, *vjp(dy)

    for ours, plain in zip(with_gradient(rotary.rotate), with_gradient(ops.rotate), strict=True):
        assert ours.dtype == dtype
        tolerance = 2**-8 if dtype == jnp.bfloat16 else 1e-6  # one rounding
        np.testing.assert_allclose(
            ours.astype(jnp.float32), plain.astype(jnp.float32), rtol=tolerance, atol=tolerance
        )
