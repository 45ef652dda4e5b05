"""Checksums of arrays: what a checkpoint held when it was written, whatever the mesh or the processes.

An array's checksum is the sum, modulo 2^32, of a hash of each element's bits and place. Sums of integers are the
same in any order, so it does not change with the sharding; the hash is one to one in the bits, so a change of any
one element always changes it, and any other change but for one in 2^32.
Source of the hash: the finaliser of MurmurHash3, Appleby 2011 (public domain).
"""

import math

import jax
import jax.numpy as jnp

GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: neighbours' places land far apart
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}  # by bytes of an element


def named_leaves(tree) -> dict[str, jax.Array]:
    """Leaves by their names: attribute names, keys and indices with dots between, as in "ema.transformer.out"."""
    return {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def leaf_name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def checksums(tree) -> dict[str, int]:
    """The checksum of each leaf, by name; with many processes all must call it, and all get the same."""
    # One at a time: many programs with collectives in the queue can block each other where devices share cores.
    return {name: int(checksum(leaf)) for name, leaf in named_leaves(tree).items()}


@jax.jit
def checksum(x) -> jax.Array:
    """Args: x: any shape and sharding, elements of 1, 2 or 4 bytes. Returns: uint32."""
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
    return jnp.sum(scrambled(words + place * jnp.uint32(GOLDEN)), dtype=jnp.uint32)


def scrambled(h):
    """A one-to-one map of uint32 in which each bit of the input changes about half of the output's."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
