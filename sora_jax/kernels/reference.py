"""Attention that holds all logits: the reference of the other kernels, the fastest for short sequences, and the
only one that takes a bias.
"""

import jax
import jax.numpy as jnp


def reference_attention(q, k, v, q_segment_ids, kv_segment_ids, bias=None):
    """Softmax attention within segments.

    Args:
      q: [B, N, A, K]. k, v: [B, M, A, K].
      q_segment_ids, kv_segment_ids: [B, N], [B, M] int32; 0 is padding.
      bias: added to the logits, [1, A, N, M] float32.
    Returns: [B, N, A, K]. Padding and a query that sees no key get 0.
    """
    mask = (q_segment_ids[:, :, None] == kv_segment_ids[:, None, :]) & (q_segment_ids > 0)[:, :, None]
    mask = mask[:, None]
    y = jax.nn.dot_product_attention(q, k, v, bias, mask)
    return jnp.where(jnp.any(mask, axis=-1)[:, 0, :, None, None], y, 0)
