"""Linear layers: each weight is declared once, with its shape, init and mesh axes.

Weights are float32. A layer computes in the dtype that it was made with: this is the one place where weights are
cast.
"""

import functools

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from sora_jax.core.mesh import spec
from sora_jax.models.layers.matmul import add_bias, matmul, split_heads
from sora_jax.models.layers.params import sharded

PRODUCT = "product"  # the name under which jax.checkpoint's policies save a layer's output

xavier_uniform = jax.nn.initializers.xavier_uniform()
normal_002 = functools.partial(jax.nn.initializers.normal, 0.02)()


class Linear(nnx.Linear):
    """nnx.Linear with the product and the bias of `matmul.py`; with its heads [..., A, K] instead of [..., D]."""

    def __call__(self, x, out_sharding=None, *, heads_in=0, heads_out=0):
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        y = matmul(out_sharding, x, kernel, heads_in=heads_in, heads_out=heads_out)
        if bias is not None:
            axes = jax.typeof(y).sharding.spec[-2 if heads_out else -1]
            y = add_bias(y, split_heads(jax.reshard(bias, jax.P(axes)), heads_out=heads_out))
        return checkpoint_name(y, PRODUCT)


def linear(
    d_in: int, d_out: int, axes: str, *, rngs, dtype, init=xavier_uniform, use_bias=True, layer=Linear
) -> Linear:
    """A linear layer with a weight [d_in, d_out].

    Args:
      axes: logical axes of the weight, e.g. "embed mlp".
      layer: the class, or a function with its arguments.
    """
    out_axis = axes.split()[1]
    return layer(
        d_in,
        d_out,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=sharded(init, axes),
        # A bias over the model width is small: every chip holds it.
        bias_init=sharded(jax.nn.initializers.zeros, "." if out_axis == "embed" else out_axis),
        rngs=rngs,
    )


def replicated_linear(layer: Linear, x):
    """A layer of the few vectors x [B, T, D]: they travel to the weight, whose shards stay where they are.

    Returns: [B, T, d_out], over "few" alone.
    """
    return jax.reshard(layer(x, out_sharding=spec("few . embed")), spec("few . ."))
