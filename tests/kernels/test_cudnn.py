"""cuDNN's attention, as far as a machine without a GPU can hold it: what it is told, and that it lowers for CUDA.

It has not been run here. The double below does what jax's `dot_product_attention` of cuDNN says that it does.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as stablehlo
from test_attention import inputs

from sora_jax.kernels.chunked import chunked
from sora_jax.kernels.cudnn_gpu import cudnn_attention
from sora_jax.kernels.ring import ring_attention

B, N, M, CLIPS = 2, 300, 70, 4


def numbers_of(lengths, starts, size):
    """The clip of each place of a row, 1 ...; 0 where there is none, [B, size]."""
    places = jnp.arange(size)[None, :, None]
    inside = (places >= starts[:, None]) & (places < (starts + lengths)[:, None]) & (lengths[:, None] > 0)
    return jnp.sum(jnp.where(inside, jnp.arange(1, inside.shape[-1] + 1), 0), axis=-1)


@jax.custom_vjp
def garbage_outside(x, inside):
    """What cuDNN leaves as the memory was, in both directions."""
    return jnp.where(inside, x, jnp.nan)


garbage_outside.defvjp(
    lambda x, inside: (garbage_outside(x, inside), inside),
    lambda inside, dx: (jnp.where(inside, dx, jnp.nan), None),
)


def double(q, k, v, bias, mask, q_lengths, kv_lengths, q_starts=None, kv_starts=None, *, scale, mask_type=None):
    assert bias is None and mask is None
    rows = (B, CLIPS) if q_starts is not None else (B,)
    assert q_lengths.shape == kv_lengths.shape == rows and q_lengths.dtype == jnp.int32
    if q_starts is None:
        assert mask_type == stablehlo.MaskType.PADDING
        q_lengths, kv_lengths = q_lengths[:, None], kv_lengths[:, None]
        q_starts = kv_starts = jnp.zeros((B, 1), jnp.int32)
    else:
        assert q_starts.shape == kv_starts.shape == (B, CLIPS + 1) and q_starts.dtype == jnp.int32
        # Clips are matched by their order: one that is there in queries alone would shift all that follow.
        np.testing.assert_array_equal(q_lengths < 0, kv_lengths < 0)
        np.testing.assert_array_equal(q_starts[:, :-1] < 0, q_lengths < 0)
        q_starts, kv_starts = q_starts[:, :-1], kv_starts[:, :-1]
    mine = numbers_of(q_lengths, q_starts, q.shape[1]), numbers_of(kv_lengths, kv_starts, k.shape[1])
    q_inside, kv_inside = (x[:, :, None, None] > 0 for x in mine)
    through = garbage_outside(q, q_inside), garbage_outside(k, kv_inside), garbage_outside(v, kv_inside)
    through = [
        jnp.where(inside, x, 0) for x, inside in zip(through, (q_inside, kv_inside, kv_inside), strict=True)
    ]
    y = jax.nn.dot_product_attention(
        *through, mask=(mine[0][:, :, None] == mine[1][:, None])[:, None], scale=scale
    )
    return jnp.where(q_inside, y, jnp.nan)


@pytest.mark.parametrize("case", ["packed", "one clip", "a clip without text"])
def test_cudnn_is_given_the_clips_of_each_sequence(one_device, monkeypatch, case):
    monkeypatch.setattr(stablehlo, "dot_product_attention", double)
    arrays, (q_segment_ids, kv_segment_ids) = inputs((N, M, 64))
    clips = CLIPS
    if case == "one clip":
        q_segment_ids, kv_segment_ids, clips = np.minimum(q_segment_ids, 1), np.minimum(kv_segment_ids, 1), 1
    elif case == "a clip without text":
        kv_segment_ids = np.where(kv_segment_ids == 2, 3, kv_segment_ids)
    weights = np.random.default_rng(1).normal(size=arrays[0].shape) * (q_segment_ids > 0)[:, :, None, None]

    def run(function):
        def loss(arrays):
            y = function(*arrays, q_segment_ids, kv_segment_ids)
            return jnp.sum(y * weights), y

        (_, y), gradients = jax.value_and_grad(loss, has_aux=True)(arrays)
        return [jnp.where((q_segment_ids > 0)[:, :, None, None], y, 0), *gradients]

    found, expected = (
        run(functools.partial(cudnn_attention, clips=clips)),
        run(functools.partial(ring_attention, chunked)),
    )
    for ours, reference in zip(found, expected, strict=True):
        assert np.abs(reference).max() > 0.1
        np.testing.assert_allclose(ours, reference, atol=1e-5)


@pytest.mark.parametrize("clips, operation", [(CLIPS, "packed"), (1, "padded")])
def test_cudnn_lowers_for_cuda_without_a_mask(one_device, monkeypatch, clips, operation):
    monkeypatch.setattr(stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(stablehlo, "check_compute_capability", lambda least: True)
    x = jax.ShapeDtypeStruct((B, 4096, 12, 128), jnp.bfloat16)
    segment_ids = jax.ShapeDtypeStruct((B, 4096), jnp.int32)

    def loss(q, k, v, segment_ids):
        return jnp.sum(cudnn_attention(q, k, v, segment_ids, segment_ids, clips=clips).astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(x, x, x, segment_ids)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @(__cudnn\$\w+)", text)
    assert sorted(calls) == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    assert "4096x4096" not in text
