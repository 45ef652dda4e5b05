"""cuDNN's flash attention on a GPU. The clips of a packed sequence are told as runs: where each begins, how long.

A mask [N, N] of 33,000 patches would take 2 GB; runs take nothing, and logits across clips are never computed.
"""

import jax
import jax.numpy as jnp

from sora_jax import compat


def cudnn_attention(q, k, v, q_segment_ids, kv_segment_ids, *, clips: int):
    """Softmax attention within segments of whole sequences, forward and backward.

    Args:
      q: [B, N, A, K], bfloat16 or float16. k, v: [B, M, A, K], the same.
      q_segment_ids, kv_segment_ids: [B, N], [B, M] int32. Clip i of a sequence is one run of i, 1 ... clips, and
        the first begins the sequence. Everything else is padding: it sees nothing and nothing sees it.
      clips: maximum number in a sequence.
    Returns: [B, N, A, K]; padding gets 0.
    """
    numbers = jnp.arange(1, clips + 1)
    q_in_clip, kv_in_clip = (x[:, :, None] == numbers for x in (q_segment_ids, kv_segment_ids))
    in_both = jnp.any(q_in_clip, axis=1) & jnp.any(kv_in_clip, axis=1)  # [B, clips]
    q_in_clip, kv_in_clip = q_in_clip & in_both[:, None], kv_in_clip & in_both[:, None]
    q_real, kv_real = (jnp.any(x, axis=2)[:, :, None, None] for x in (q_in_clip, kv_in_clip))
    # cuDNN does not write padding's outputs and gradients: whatever was in memory is set to 0.
    q, k, v = _zero_gradient(q, q_real), _zero_gradient(k, kv_real), _zero_gradient(v, kv_real)
    lengths = [jnp.sum(x, axis=1, dtype=jnp.int32) for x in (q_in_clip, kv_in_clip)]
    if clips == 1:
        lengths, starts = [jnp.maximum(length[:, 0], 1) for length in lengths], []
    else:
        # Absent runs are -1, and so is the end, which cuDNN does not read.
        lengths = [jnp.where(in_both, length, -1) for length in lengths]
        starts = [jnp.where(in_both, jnp.argmax(x, axis=1), -1).astype(jnp.int32) for x in (q_in_clip, kv_in_clip)]
        starts = [jnp.pad(start, ((0, 0), (0, 1)), constant_values=-1) for start in starts]
    y = compat.cudnn_attention(q, k, v, lengths, starts, scale=q.shape[-1] ** -0.5)
    return jnp.where(q_real, y, 0)


@jax.custom_vjp
def _zero_gradient(x, real):
    """x, with gradient 0 where `real` is False. x itself has no effect there, so it needs no write."""
    del real
    return x


_zero_gradient.defvjp(lambda x, real: (x, real), lambda real, dx: (jnp.where(real, dx, 0), None))


def supports(dtype, K: int, clips: int | None) -> bool:
    """Whether this GPU's cuDNN has a kernel: sequences of several clips need a Hopper."""
    if dtype not in (jnp.bfloat16, jnp.float16) or K % 8 or K > 128 or clips is None:
        return False
    return compat.gpu_has_compute_capability("8.0" if clips == 1 else "9.0")
