"""Rotary positions on TPUs: the halves of a head change places in a product."""

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def rotate(x, cos, sin):
    """As `sora_jax.kernels.ops.rotate`; the angles take no gradient.

    Halves of 64 elements fill half of a register's 128 lanes, and joining them writes all of x once more. A
    product with a permutation is exact, and writes the layout that attention reads.
    """
    K = x.shape[-1]
    swap = np.roll(np.eye(K), K // 2, axis=1)
    cos, sin = (jnp.concatenate(parts, axis=-1)[:, :, None] for parts in ((cos, cos), (-sin, sin)))
    swapped = jax.lax.dot_general(
        x,
        jnp.asarray(swap, x.dtype),
        (((3,), (0,)), ((), ())),
        precision="highest" if x.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    return (x.astype(jnp.float32) * cos + swapped * sin).astype(x.dtype)


def _backward(angles, dy):
    cos, sin = angles
    return rotate(dy, cos, -sin), jnp.zeros_like(cos), jnp.zeros_like(sin)


rotate.defvjp(lambda x, cos, sin: (rotate(x, cos, sin), (cos, sin)), _backward)
