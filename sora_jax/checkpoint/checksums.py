"""Checksums of arrays that do not depend on the mesh or the number of processes.

A checksum is the sum, modulo 2^32, of a hash of each element's bits and position. An integer sum does not depend
on the order, hence not on the sharding. The hash is one-to-one in the bits: a change of one element always changes
the checksum, any other change with probability 1 - 2^-32.
Source: the finaliser of MurmurHash3, Appleby 2011 (public domain).
"""

import math

import jax
import jax.numpy as jnp

GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: spreads neighbouring positions
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # by bytes of an element


def named_leaves(tree) -> dict[str, jax.Array]:
    """Leaves by name: attribute names, keys and indices joined by dots, such as "ema.transformer.out"."""
    return {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def leaf_name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def checksums(tree) -> dict[str, int]:
    """The checksum of each leaf, by name, equal on all processes; every process must call it."""
    # One at a time: queued programs with collectives can block each other where devices share cores.
    return {name: int(checksum(leaf)) for name, leaf in named_leaves(tree).items()}


@jax.jit
def checksum(x) -> jax.Array:
    """The checksum of an array, uint32.

    Args:
      x: any shape and sharding, elements of 1, 2 or 4 bytes.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    sharding = jax.typeof(words).sharding
    place = jnp.zeros((), jnp.uint32)
    for axis in range(x.ndim):
        stride = jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        along = jax.lax.broadcasted_iota(
            jnp.uint32, x.shape, axis, out_sharding=None if sharding.mesh.empty else sharding
        )
        place = place + along * stride
    return jnp.sum(scramble(words + place * jnp.uint32(GOLDEN)), dtype=jnp.uint32)


def scramble(h):
    """A one-to-one map of uint32 in which each input bit changes about half of the output bits."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
