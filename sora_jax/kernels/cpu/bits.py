"""bfloat16 handled as integers: XLA:CPU widens bfloat16 to float32 to slice it, and rounds to it slowly."""

import jax
import jax.numpy as jnp


def as_bits(x):
    """bfloat16 as uint16; other types as they are."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(x):
    """Inverse of `as_bits`."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def round_to(x, dtype):
    """x [...] float32 in `dtype`. To bfloat16 ties round away from zero, not to even."""
    if dtype != jnp.bfloat16:
        return x.astype(dtype)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + 0x8000
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
