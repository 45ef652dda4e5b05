"""cuDNN's flash attention on a GPU: the clips of a row as runs, by where each begins and how long it is.

A mask of [N, N] would cost 2 GB a row at 33,000 patches; runs cost nothing, and what is hidden is not computed.
"""

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as stablehlo
from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention


def cudnn(q, k, v, q_segment_ids, kv_segment_ids, *, clips: int):
    """Softmax attention within segments by cuDNN, forward and backward, of whole sequences and few heads.

    Args:
      q: [B, N, A, K], bfloat16 or float16. k, v: [B, M, A, K], the same.
      q_segment_ids, kv_segment_ids: [B, N], [B, M] int32; 1 ... clips, each one run, the first at the row's
        beginning.
        What is in none of them is padding: it sees nothing and nothing sees it.
      clips: in a row at most.
    Returns: [B, N, A, K]; padding gets 0.
    """
    scale = q.shape[-1] ** -0.5
    numbers = jnp.arange(1, clips + 1)
    q_mine, kv_mine = (x[:, :, None] == numbers for x in (q_segment_ids, kv_segment_ids))
    both = jnp.any(q_mine, axis=1) & jnp.any(kv_mine, axis=1)  # [B, clips]
    q_mine, kv_mine = q_mine & both[:, None], kv_mine & both[:, None]
    q_real, kv_real = (jnp.any(mine, axis=2)[:, :, None, None] for mine in (q_mine, kv_mine))
    # cuDNN leaves padding's outputs and gradients as the memory was: they are set to 0.
    q, k, v = _learning(q, q_real), _learning(k, kv_real), _learning(v, kv_real)
    lengths = [jnp.sum(mine, axis=1, dtype=jnp.int32) for mine in (q_mine, kv_mine)]
    if clips == 1:
        lengths = [jnp.maximum(length[:, 0], 1) for length in lengths]
        y = dot_product_attention(q, k, v, None, None, *lengths, scale=scale, mask_type=MaskType.PADDING)
    else:
        # Runs that are not there are -1; so is the end, which cuDNN does not read.
        lengths = [jnp.where(both, length, -1) for length in lengths]
        starts = [jnp.where(both, jnp.argmax(mine, axis=1), -1).astype(jnp.int32) for mine in (q_mine, kv_mine)]
        starts = [jnp.pad(start, ((0, 0), (0, 1)), constant_values=-1) for start in starts]
        y = dot_product_attention(q, k, v, None, None, *lengths, *starts, scale=scale)
    return jnp.where(q_real, y, 0)


@jax.custom_vjp
def _learning(x, real):
    """x, with no gradient where it is not real. What it is there has no effect, so nothing is written."""
    del real
    return x


_learning.defvjp(lambda x, real: (x, real), lambda real, dx: (jnp.where(real, dx, 0), None))


def suits(dtype, K: int, clips: int | None) -> bool:
    """Whether cuDNN has a kernel for this on this machine: rows of several clips need a Hopper GPU."""
    if dtype not in (jnp.bfloat16, jnp.float16) or K % 8 or K > 128 or clips is None:
        return False
    return stablehlo.check_compute_capability("8.0" if clips == 1 else "9.0")
