"""Low-rank adapters beside linear layers. Source: Hu et al. 2021 (arXiv 2106.09685), eq. 3."""

import functools

import jax
from flax import nnx

from sora_jax.models.layers.linear import Linear, linear
from sora_jax.models.layers.matmul import matmul
from sora_jax.models.layers.params import sharded


class LoRALinear(Linear):
    """x W + b + scale (x A) B for x [B, N, d_in]; nnx.LoRALinear with mesh axes and a scale."""

    def __init__(self, d_in, d_out, axes, *, rank, scale, rngs, **options):
        super().__init__(d_in, d_out, rngs=rngs, **options)
        d_in_axis, d_out_axis = axes.split()
        self.scale = scale
        a_init = sharded(jax.nn.initializers.he_uniform(), f"{d_in_axis} .")
        b_init = sharded(jax.nn.initializers.zeros, f". {d_out_axis}")
        self.lora_a = nnx.Param(a_init(rngs.params(), (d_in, rank)))
        self.lora_b = nnx.Param(b_init(rngs.params(), (rank, d_out)))

    def __call__(self, x, out_sharding=None, *, heads_in=0, heads_out=0):
        y = super().__call__(x, out_sharding=out_sharding, heads_in=heads_in, heads_out=heads_out)
        a, b = self.lora_a[...].astype(y.dtype), (self.scale * self.lora_b[...]).astype(y.dtype)
        h = matmul(jax.P(*out_sharding[:2], None), x.astype(y.dtype), a, heads_in=heads_in)
        return y + matmul(out_sharding, h, b, heads_out=heads_out)


def no_adapter(name: str) -> None:
    """The `adapter_of` of a model without adapters; one with adapters returns (rank, scale) of the named layer."""
    del name


def adaptable_linear(d_in: int, d_out: int, axes: str, *, adapter: tuple[int, float] | None, **options) -> Linear:
    """`linear`, with an adapter if `adapter` is (rank, scale)."""
    if adapter is not None:
        rank, scale = adapter
        options["layer"] = functools.partial(LoRALinear, axes=axes, rank=rank, scale=scale)
    return linear(d_in, d_out, axes, **options)
