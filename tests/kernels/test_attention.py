"""Every kernel of attention against the reference that holds all logits, forward and gradient, float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sora_jax.core.errors import InputError
from sora_jax.kernels import attention as entry
from sora_jax.kernels import chunked, ops
from sora_jax.kernels.attention import attention, choose_kernel
from sora_jax.kernels.cpu.bits import round_to
from sora_jax.kernels.tpu import blocks
from sora_jax.kernels.tpu.attention import make_kernel

# Queries, keys, width of a head: lengths that are no multiple of a block, cross-attention, both published widths.
SHAPES = {"self": (300, 300, 64), "cross": (130, 70, 128), "wide": (260, 520, 128), "two chunks": (800, 900, 64)}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The TPU kernel's program, run step by step."""
    monkeypatch.setitem(entry.BLOCK_KERNELS, "pallas", make_kernel(interpret=True))
    monkeypatch.setattr(blocks, "MAX_BLOCK", 256)


def packed(rng, length, rows=2):
    """Segments of three clips of random lengths and padding at the end, [rows, length] int32."""
    segment_ids = np.zeros((rows, length), np.int32)
    for row in segment_ids:
        ends = np.sort(rng.choice(np.arange(1, length), 3, replace=False))
        for segment, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), 1):
            row[start:end] = segment
    return segment_ids


def inputs(shape, heads=2):
    N, M, K = SHAPES.get(shape, shape)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, heads, K)).astype(np.float32) for n in (N, M, M))
    q_segment_ids = packed(rng, N)
    kv_segment_ids = q_segment_ids if N == M else packed(rng, M)
    return (q, k, v), (q_segment_ids, kv_segment_ids)


def run(kernel, arrays, segment_ids):
    """Outputs, and the gradients of a loss on them."""
    weights = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)

    @jax.jit
    def both(arrays):
        def loss(arrays):
            y = attention(*arrays, *segment_ids, kernel=kernel)
            return jnp.sum(y * weights), y

        return jax.value_and_grad(loss, has_aux=True)(arrays)

    (_, y), gradients = both(arrays)
    return list(map(np.asarray, (y, *gradients)))


def assert_same(found, expected, tolerance=1e-5):
    for ours, reference in zip(found, expected, strict=True):
        assert np.abs(reference).max() > 0.1
        np.testing.assert_allclose(ours, reference, atol=tolerance)


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("kernel", ["chunked", "pallas"])
def test_kernel_equals_the_reference_with_its_gradient(one_device, kernel, shape, monkeypatch):
    monkeypatch.setattr(chunked, "MAX_CHUNK", 512)
    arrays, segment_ids = inputs(shape)
    assert_same(run(kernel, arrays, segment_ids), run("xla", arrays, segment_ids))


def test_chunks_on_other_backends_give_the_same(one_device, monkeypatch):
    """There heads are batched, and sequences come one after the other."""
    monkeypatch.setattr(chunked, "MAX_CHUNK", 256)
    for name in ("map_heads", "sum_over_queries", "round_to", "as_bits"):
        monkeypatch.setattr(chunked, name, getattr(ops, name).__wrapped__)
    arrays, segment_ids = inputs("two chunks")
    assert_same(run("chunked", arrays, segment_ids), run("xla", arrays, segment_ids))


@pytest.mark.parametrize("text", [False, True], ids=["self", "to its text"])
def test_a_packed_clip_gives_what_it_gives_alone(one_device, monkeypatch, text):
    monkeypatch.setattr(chunked, "MAX_CHUNK", 128)
    monkeypatch.setattr(chunked, "KEY_BLOCK", 64)

    def row(lengths, size):
        ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        return np.tile(np.pad(ids, (0, size - len(ids))), (2, 1)).astype(np.int32)

    lengths, N, M = (130, 20, 300, 7), 600, 150 if text else 600
    kv_lengths = (20, 3, 70, 9) if text else lengths
    (q, k, v), _ = inputs((N, M, 16))
    segment_ids, kv_segment_ids = row(lengths, N), row(kv_lengths, M)
    whole = run("chunked", (q, k, v), (segment_ids, kv_segment_ids))
    # The loss weighs each output by its place in the whole row, so that of a clip is cut from it.
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    n = m = 0
    for length, kv_length in zip(lengths, kv_lengths, strict=True):
        mine, keys = slice(n, n := n + length), slice(m, m := m + kv_length)
        ids = [np.ones((2, x), np.int32) for x in (length, kv_length)]

        def loss(arrays, ids=ids, mine=mine):
            y = attention(*arrays, *ids, kernel="chunked")
            return jnp.sum(y * weights[:, mine]), y

        (_, y), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))((q[:, mine], k[:, keys], v[:, keys]))
        for found, alone, where in zip(whole, (y, *gradients), (mine, mine, keys, keys), strict=True):
            np.testing.assert_allclose(found[:, where], alone, atol=1e-6 * max(1, np.abs(alone).max()))
    np.testing.assert_array_equal(whole[0][:, n:], 0)


def test_chunks_meet_the_keys_of_their_own_clips_alone(one_device, monkeypatch):
    """Blocks of keys met: of 4 clips of 256, not of 1,024; none for padding."""
    monkeypatch.setattr(chunked, "MAX_CHUNK", 128)
    monkeypatch.setattr(chunked, "KEY_BLOCK", 64)
    met = []
    logits = chunked._logits

    def counted(q, k):
        jax.debug.callback(lambda _: met.append(len(k)), q[0, 0])
        return logits(q, k)

    monkeypatch.setattr(chunked, "_logits", counted)
    x = np.random.default_rng(0).normal(size=(1, 1536, 1, 8)).astype(np.float32)
    segment_ids = np.repeat([1, 2, 3, 4, 0], [256, 256, 256, 256, 512]).astype(np.int32)[None]

    def blocks(function):
        met.clear()
        jax.block_until_ready(jax.jit(function)(x))
        jax.effects_barrier()
        return len(met)

    def forward(x):
        return jnp.sum(attention(x, x, x, segment_ids, segment_ids, kernel="chunked"))

    pairs = 4 * 2 * 4  # clips, chunks of a clip, blocks of its keys
    assert blocks(forward) == pairs
    assert blocks(jax.grad(forward)) == 3 * pairs  # the backward pass has two such products


@pytest.mark.parametrize("kernel", ["xla", "chunked", "pallas"])
def test_a_query_that_sees_no_key_gets_0_and_gives_no_gradient(one_device, kernel):
    arrays, (q_segment_ids, kv_segment_ids) = inputs("cross")
    lonely = np.where(q_segment_ids == 2, 9, q_segment_ids)
    y, *gradients = run(kernel, arrays, (lonely, kv_segment_ids))
    np.testing.assert_array_equal(y[lonely == 9], 0)
    np.testing.assert_array_equal(gradients[0][lonely == 9], 0)
    for gradient in gradients[1:]:  # the keys that nobody sees any more
        np.testing.assert_array_equal(gradient[kv_segment_ids == 2], 0)
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0.1


@pytest.mark.parametrize("layout", [{}, {"ring": 2}, {"ring": 4}], ids=["alone", "ring2", "ring4"])
@pytest.mark.parametrize("times", [1, 10])
def test_keys_of_others_do_not_matter_however_long(one_device, times, layout):
    """Their logits are up to a thousand times as large, those that count modest or ten times as large."""
    (q, k, v), (segment_ids, _) = inputs((256, 256, 16))
    q = times * q
    other = segment_ids == 2
    hidden = np.where(other, 9, segment_ids)  # from every query
    expected = run("xla", (q, k, v), (segment_ids, hidden))
    k = np.where(other[..., None, None], 1000 * k, k)
    with jax.set_mesh(tiny.mesh_of(**layout)):
        found = run("chunked", (q, k, v), (segment_ids, hidden))
    # Logits that are ten times as large are rounded ten times as coarsely.
    assert_same(found, expected, tolerance=times * 1e-5)


@pytest.mark.parametrize("shape", [(256, 128, 64), (1200, 1200, 64)], ids=["one chunk", "two chunks"])
def test_bfloat16_is_rounded_a_few_times_and_no_more(one_device, shape):
    """Of one head and one chunk, too: without a loop around them the compiler turns products around, and XLA's CPU
    backend can't run all that come out."""
    arrays, segment_ids = inputs(shape, heads=1)
    arrays, segment_ids = [x[:1] for x in arrays], [x[:1] for x in segment_ids]
    expected = run("xla", [jnp.asarray(x, jnp.bfloat16).astype(jnp.float32) for x in arrays], segment_ids)
    found = run("chunked", [jnp.asarray(x, jnp.bfloat16) for x in arrays], segment_ids)
    for ours, reference in zip(found, expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert np.abs(ours.astype(np.float32) - reference).max() < 0.01 * np.abs(reference).max()


def test_bfloat16_rounded_by_bits_is_the_nearest(one_device):
    x = np.float32([0, 1, 1 + 2**-8 + 2**-20, 1 + 2**-8 - 2**-20, -3.14159, 1e-30, 3e38, np.inf, np.nan])
    found = jax.jit(lambda x: round_to(x, jnp.bfloat16))(x)
    np.testing.assert_array_equal(found.astype(np.float32), x.astype(jnp.bfloat16).astype(np.float32))


# Every way to lie on 8 devices that has a sequence to share; 8 heads.
LAYOUTS = [
    {"ulysses": 2},
    {"ulysses": 4},
    {"ulysses": 8},
    {"ring": 2},
    {"ring": 4},
    {"ring": 8},
    {"ulysses": 2, "ring": 2},
    {"ulysses": 2, "ring": 4},
    {"ulysses": 4, "ring": 2},
    {"data": 2, "ulysses": 2, "tensor": 2},
    {"data": 2, "ring": 2, "tensor": 2},
]
NAMES = ["-".join(f"{axis}{size}" for axis, size in layout.items()) for layout in LAYOUTS]


@pytest.fixture(scope="module")
def alone():
    """Inputs, and what one device makes of them: long rows of packed clips; many keys, few keys."""
    cases = []
    with jax.set_mesh(tiny.mesh_of()):
        for shape in ((304, 304, 16), (304, 40, 16)):
            arrays, segment_ids = inputs(shape, heads=8)
            cases.append((arrays, segment_ids, run("xla", arrays, segment_ids)))
    return cases


@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_attention_of_many_devices_equals_that_of_one(alone, layout, monkeypatch):
    monkeypatch.setattr(chunked, "MAX_CHUNK", 64)  # several chunks on each
    with jax.set_mesh(tiny.mesh_of(**layout)):
        for arrays, segment_ids, expected in alone:
            assert_same(run("chunked", arrays, segment_ids), expected)


@pytest.mark.parametrize("layout", [{"ring": 3}, {"ulysses": 2, "ring": 2}], ids=["ring3", "context2-ring2"])
def test_the_kernel_for_tpu_goes_round_the_ring(one_device, layout):
    arrays, segment_ids = inputs((312, 312, 64), heads=2)
    expected = run("xla", arrays, segment_ids)
    with jax.set_mesh(tiny.mesh_of(**layout)):
        assert_same(run("pallas", arrays, segment_ids), expected)


def test_the_reference_runs_on_a_ring(alone):
    arrays, segment_ids, expected = alone[0]
    with jax.set_mesh(tiny.mesh_of(ring=2, ulysses=2, tensor=2)):
        assert_same(run("xla", arrays, segment_ids), expected)


def test_keys_go_round_as_often_as_they_must(one_device):
    """Keys, values and segments to all others; gradients of keys and values too, and one step more: home."""

    def sent(ring, keys):
        arrays, segment_ids = inputs((64, keys, 8))
        with jax.set_mesh(tiny.mesh_of(ring=ring)):

            def loss(*arrays):
                return jnp.sum(attention(*arrays, *segment_ids, kernel="chunked"))

            forward = jax.make_jaxpr(loss)(*arrays)
            both = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
        return [tiny.count(jaxpr.jaxpr, "ppermute") for jaxpr in (forward, both)]

    for ring in (2, 4, 8):
        there = 3 * (ring - 1)
        assert sent(ring, 64) == [there, 2 * there + 2 * ring]
    assert sent(4, 32) == [0, 0]  # few keys: gathered
    assert sent(1, 64) == [0, 0]


@pytest.mark.parametrize("clips, hops", [(1, 8), (4, 2), (8, 1)])
def test_hops_that_hold_no_key_of_a_chip_are_skipped(one_device, monkeypatch, clips, hops):
    """On a ring of 8 with clips of equal lengths each chip computes as many hops as its clip has chips."""
    done = []

    def counted(function, name):
        def run(*arrays):
            jax.debug.callback(lambda _: done.append(name), arrays[0][0, 0, 0, 0])
            return function(*arrays)

        return run

    plain = chunked.chunked
    kernel = plain._replace(
        forward=counted(plain.forward, "forward"), backward=counted(plain.backward, "backward")
    )
    arrays, _ = inputs((256, 256, 16))
    segment_ids = np.tile(np.repeat(np.arange(1, clips + 1), 256 // clips), (2, 1)).astype(np.int32)
    expected = run("xla", arrays, (segment_ids, segment_ids))
    monkeypatch.setitem(entry.BLOCK_KERNELS, "chunked", kernel)
    with jax.set_mesh(tiny.mesh_of(ring=8)):
        assert_same(run("chunked", arrays, (segment_ids, segment_ids)), expected)
        jax.effects_barrier()
    assert {name: done.count(name) for name in done} == {"forward": 8 * hops, "backward": 8 * hops}


def test_chunks_hold_less_than_all_logits(one_device):
    """What XLA says a gradient needs beside its arguments and results, 8,192 queries and keys of two heads."""
    shapes = [jax.ShapeDtypeStruct((1, 8192, 2, 8), jnp.float32)] * 3
    segment_ids = np.ones((1, 8192), np.int32)

    def temporaries(kernel):
        def loss(q, k, v):
            return jnp.sum(attention(q, k, v, segment_ids, segment_ids, kernel=kernel))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("xla") > 2 * 4 * 8192**2
    assert temporaries("chunked") < 2 * 4 * 8192**2 / 4


def test_layers_do_not_keep_the_mask_of_their_chunks(one_device):
    """It is known before the queries are, and JAX would make it once for all layers of a loop: N x M a head."""
    segment_ids = np.ones((1, 1024), np.int32)

    def loss(x):
        def layer(x, _):
            return x + attention(x, x, x, segment_ids, segment_ids, kernel="chunked"), None

        return jnp.sum(jax.lax.scan(layer, x, length=2)[0])

    jaxpr = jax.make_jaxpr(jax.grad(loss))(jnp.ones((1, 1024, 2, 8)))
    sizes = [var.aval.size for eqn in jaxpr.jaxpr.eqns for var in eqn.outvars if var.aval.dtype == bool]
    assert max(sizes, default=0) < 1024**2


def test_the_kernel_is_chosen_by_platform_and_size(monkeypatch):
    def choose(kernel, length, dtype=jnp.bfloat16, clips=4, ring=1):
        x = jax.ShapeDtypeStruct((1, length, 12, 128), dtype)
        return choose_kernel(kernel, x, x, clips, ring)

    assert choose("auto", 256) == "xla" and choose("auto", 512) == "chunked"
    monkeypatch.setattr("sora_jax.kernels.attention.platform", lambda: "tpu")
    assert choose("auto", 512) == "pallas" and choose("chunked", 512) == "chunked"
    with pytest.raises(InputError, match=r"'cudnn' needs an NVIDIA GPU.*this is tpu, bfloat16, 128"):
        choose("cudnn", 4096)
    monkeypatch.setattr("sora_jax.kernels.attention.platform", lambda: "gpu")
    hopper = {"8.0": True, "9.0": True}
    cudnn = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{cudnn}.check_compute_capability", lambda least: hopper[least])
    assert choose("auto", 4096) == choose("cudnn", 4096) == "cudnn"
    assert choose("auto", 4096, jnp.float32) == choose("auto", 4096, ring=2) == "chunked"
    assert choose("auto", 4096, clips=None) == "chunked"
    hopper["9.0"] = False  # an A100: one clip in a row, as when sampling, but not several
    assert choose("auto", 4096, clips=1) == "cudnn" and choose("auto", 4096) == "chunked"
