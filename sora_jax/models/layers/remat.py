"""Stacked blocks, and which of their values the backward pass keeps or computes again."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sora_jax import compat
from sora_jax.core.mesh import over_gloo
from sora_jax.kernels.ring import RESIDUALS
from sora_jax.models.layers.linear import PRODUCT
from sora_jax.models.layers.params import RngKeys

BLOCK_INPUT = "block input"  # its name in jax.checkpoint's policies


def _is_cudnn_attention(prim, *_, **__):
    return prim.name == compat.CUDNN_FORWARD_PRIMITIVE


def _save(*names):
    named = jax.checkpoint_policies.save_only_these_names(*names)
    return jax.checkpoint_policies.save_from_both_policies(named, _is_cudnn_attention)


# What the backward pass keeps of each block's forward pass; it computes the rest again.
POLICIES = {
    # The block's input.
    "full": jax.checkpoint_policies.nothing_saveable,
    # Also the outputs of attention kernels, which are half of the work at 33,000 patches.
    "save_attention": _save(RESIDUALS),
    # Also those of linear layers: norms, rotations and GELU are computed again.
    "save_products": _save(RESIDUALS, PRODUCT),
    # The block's input, in the host's memory.
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def stack(make_block, L: int, *, rngs):
    """L blocks as one module, every weight with a leading [L]; `make_block(rngs)` makes one."""
    return jax.vmap(lambda key: make_block(RngKeys(key)))(jax.random.split(rngs.params(), L))


def run_stack(blocks, x, call, *, remat: str, unroll: int = 1):
    """x after all blocks in turn, x = call(block, x).

    Args:
      blocks: of `stack`.
      remat: one of POLICIES, or "none": keep everything for the backward pass.
      unroll: blocks in one turn of the compiled loop; at least as many as there are: no loop.
    """
    L = len(jax.tree.leaves(blocks)[0])
    no_loop = L > 1 and (unroll >= L or over_gloo())

    def body(x, block):
        return call(block, checkpoint_name(x, BLOCK_INPUT)), None

    if remat != "none":
        body = jax.checkpoint(body, prevent_cse=no_loop, policy=POLICIES[remat])
    if not no_loop:
        return jax.lax.scan(body, x, blocks, unroll=unroll)[0]
    # A scan, even of one turn, would copy what all layers keep into one array and out of it.
    leaves, tree = jax.tree.flatten(blocks)
    for block in zip(*map(jnp.unstack, leaves), strict=True):
        x, _ = body(x, jax.tree.unflatten(tree, block))
    return x
