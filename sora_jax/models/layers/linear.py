"""The layers that the models share: each weight is declared once, with its shape, init and mesh axes.

Weights are float32; a layer computes in the dtype it was made with, which is the one place where weights are cast.
Norms always compute in float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from sora_jax.core.mesh import over_gloo, spec
from sora_jax.kernels.ring import RESIDUALS
from sora_jax.models.layers.matmul import add_bias, dot_general
from sora_jax.models.layers.norm import LayerNorm, RMSNorm
from sora_jax.models.layers.params import RngKeys

# Names of what a policy may save.
BLOCK_INPUT, PRODUCT = "block input", "product"
CUBIC = 0.044715  # of the tanh in GELU

xavier_uniform = jax.nn.initializers.xavier_uniform()


def sharded(init, axes: str):
    """An initializer whose array is laid out by `axes`, e.g. "embed mlp"."""
    layout = spec(axes)
    return lambda key, shape, dtype=jnp.float32: init(key, shape, dtype, out_sharding=layout)


class Linear(nnx.Linear):
    """nnx.Linear, its products and its bias by `models/product.py`."""

    def __call__(self, x, out_sharding=None):
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        last_by_first = ((x.ndim - 1,), (0,)), ((), ())
        y = dot_general(x, kernel, last_by_first, precision=self.precision, out_sharding=out_sharding)
        if bias is not None:
            y = add_bias(y, jax.reshard(bias, jax.P(jax.typeof(y).sharding.spec[-1])))
        return checkpoint_name(y, PRODUCT)


class AdaptedLinear(Linear):
    """A linear layer with a low-rank adapter beside it: x W + b + scale (x A) B. x: [B, N, d_in].

    Source: Hu et al. 2021 (arXiv 2106.09685), eq. 3. nnx.LoRALinear with mesh axes and a scale.
    """

    def __init__(self, d_in, d_out, axes, *, rank, scale, rngs, **options):
        super().__init__(d_in, d_out, rngs=rngs, **options)
        d_in_axis, d_out_axis = axes.split()
        self.scale = scale
        a_init = sharded(jax.nn.initializers.he_uniform(), f"{d_in_axis} .")
        b_init = sharded(jax.nn.initializers.zeros, f". {d_out_axis}")
        self.lora_a = nnx.Param(a_init(rngs.params(), (d_in, rank)))
        self.lora_b = nnx.Param(b_init(rngs.params(), (rank, d_out)))

    def __call__(self, x, out_sharding=None):
        y = super().__call__(x, out_sharding=out_sharding)
        a, b = self.lora_a[...].astype(y.dtype), (self.scale * self.lora_b[...]).astype(y.dtype)
        h = jnp.einsum("bnd,dr->bnr", x.astype(y.dtype), a, out_sharding=jax.P(*out_sharding[:2], None))
        return y + jnp.einsum("bnr,rd->bnd", h, b, out_sharding=out_sharding)


def no_adapter(name: str) -> None:
    """The adapter of a layer where there are none; else (rank, scale)."""
    del name


def linear(
    d_in: int,
    d_out: int,
    axes: str,
    *,
    rngs,
    dtype,
    init=xavier_uniform,
    use_bias=True,
    adapter: tuple[int, float] | None = None,
) -> nnx.Linear:
    """A linear layer with a weight [d_in, d_out] laid out by `axes`, e.g. "embed mlp"; adapter: (rank, scale)."""
    out_axis = axes.split()[1]
    make = Linear
    if adapter is not None:
        make = functools.partial(AdaptedLinear, axes=axes, rank=adapter[0], scale=adapter[1])
    return make(
        d_in,
        d_out,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=sharded(init, axes),
        # A bias over the model width is small: every chip holds it.
        bias_init=sharded(jax.nn.initializers.zeros, "." if out_axis == "embed" else out_axis),
        rngs=rngs,
    )


def rms_norm(d: int, axis: str, *, epsilon: float, rngs) -> RMSNorm:
    """RMSNorm over the last dimension of size d, with a scale laid out by `axis`; float32."""
    return RMSNorm(d, epsilon=epsilon, scale_init=sharded(jax.nn.initializers.ones, axis), rngs=rngs)


def layer_norm(d: int, *, epsilon: float, affine: bool, rngs) -> LayerNorm:
    """LayerNorm over the last dimension of size d, with or without scale and bias; float32."""
    return LayerNorm(d, epsilon=epsilon, use_scale=affine, use_bias=affine, rngs=rngs)


def stack(make_block, L: int, *, rngs):
    """L blocks as one, every weight with a leading [L]; `make_block(rngs)` makes one."""
    return jax.vmap(lambda key: make_block(RngKeys(key)))(jax.random.split(rngs.params(), L))


def _is_attention(prim, *_, **__):
    """cuDNN's output bears no name of ours, but its operation has one."""
    return prim.name == "dot_product_attention_fwd_wrapper"


def _save(*names):
    named = jax.checkpoint_policies.save_only_these_names(*names)
    return jax.checkpoint_policies.save_from_both_policies(named, _is_attention)


# What the backward pass keeps of each block's forward pass; the rest it computes again.
POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,  # a block's input, no more
    # Also what the attention's kernels gave, so that they do not run again: they are half of the work at 33,000
    # patches, and more beyond.
    "save_attention": _save(RESIDUALS),
    # Of linear layers, too: what is computed again is norms, rotations and GELU.
    "save_products": _save(RESIDUALS, PRODUCT),
    # A block's input, in the host's memory.
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def run_stack(blocks, x, call, *, remat: str, unroll: int = 1):
    """Apply stacked blocks one after another: x = call(block, x) for each.

    Args:
      remat: one of POLICIES, or "none": keep everything for the backward pass.
      unroll: blocks in one turn of the compiled loop; as many as there are: no loop.
    """

    L = len(jax.tree.leaves(blocks)[0])
    whole = L > 1 and (unroll >= L or over_gloo())

    def body(x, block):
        return call(block, checkpoint_name(x, BLOCK_INPUT)), None

    if remat != "none":
        body = jax.checkpoint(body, prevent_cse=whole, policy=POLICIES[remat])
    if not whole:
        return jax.lax.scan(body, x, blocks, unroll=unroll)[0]
    # A scan, even of one turn, would copy all that the layers keep into one array, and out of it.
    leaves, tree = jax.tree.flatten(blocks)
    for block in zip(*map(jnp.unstack, leaves), strict=True):
        x, _ = body(x, jax.tree.unflatten(tree, block))
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gelu(approximate, x):
    """In float32, rounded once: to round each of its steps to bfloat16 takes a CPU three times as long.

    Source: Hendrycks & Gimpel 2016 (arXiv 1606.08415), section 2.
    """
    return jax.nn.gelu(x.astype(jnp.float32), approximate=approximate).astype(x.dtype)


def _gelu_backward(approximate, x, dy):
    if not approximate:
        return jax.vjp(lambda x: jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype), x)[1](dy)
    # By the sigmoid of 2 u for the tanh of u: of a tanh that the forward pass has too, computed again, a GPU's
    # compiler makes one for both, and writes it to memory in float32.
    wide, factor = x.astype(jnp.float32), 2 * math.sqrt(2 / math.pi)
    part = jax.nn.sigmoid(factor * wide * (1 + CUBIC * jnp.square(wide)))
    gradient = part + wide * part * (1 - part) * factor * (1 + 3 * CUBIC * jnp.square(wide))
    return ((dy.astype(jnp.float32) * gradient).astype(x.dtype),)


# It keeps x alone: of its steps, in float32, not one.
gelu.defvjp(lambda approximate, x: (gelu(approximate, x), x), _gelu_backward)


class Mlp(nnx.Module):
    """Linear, GELU (by tanh if `approximate`), linear: [..., N, D] -> [..., N, D]."""

    def __init__(self, D: int, M: int, *, dtype, approximate=True, adapter_of=no_adapter, rngs):
        self.approximate = approximate
        self.up = linear(D, M, "embed mlp", dtype=dtype, adapter=adapter_of("mlp.up"), rngs=rngs)
        self.down = linear(M, D, "mlp embed", dtype=dtype, adapter=adapter_of("mlp.down"), rngs=rngs)

    def __call__(self, x):
        h = gelu(self.approximate, self.up(x, out_sharding=spec("batch tokens mlp")))
        return self.down(h, out_sharding=spec("batch tokens ."))


def sinusoid(t, width: int):
    """Sinusoidal features of a scalar: [cos, sin] of t * 10000^(-2 i / width), [...] -> [..., width] float32.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, with the cosines first.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


normal_002 = functools.partial(jax.nn.initializers.normal, 0.02)()
