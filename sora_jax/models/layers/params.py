"""Modules as pure pytrees: parameters are plain nested dicts; the static rest of a module is found by tracing.

A module class takes (settings, *, rngs). The names of its parameters, here and in every file, are its attributes.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from sora_jax.core.mesh import spec


class RngKeys:
    """The keys that `nnx.Rngs(key)` draws, counted in Python.

    Flax counts in an array, a tracer while tracing. For each key JAX then formats an error message out of all
    equations so far, which Flax discards: most of the time to trace an autoencoder.
    """

    def __init__(self, key):
        self.key, self.drawn = key, 0

    def params(self) -> jax.Array:
        """The next key; the name is Flax's."""
        key = jax.random.fold_in(self.key, self.drawn)
        self.drawn += 1
        return key


def sharded(init, axes: str):
    """An initializer whose array is laid out by logical `axes`, e.g. "embed mlp"."""
    layout = spec(axes)
    return lambda key, shape, dtype=jnp.float32: init(key, shape, dtype, out_sharding=layout)


def init_params(module_class, settings, key) -> dict:
    """Fresh parameters, float32, each laid out on the current mesh as its layer declares."""
    return nnx.to_pure_dict(nnx.state(module_class(settings, rngs=RngKeys(key))))


def abstract_params(module_class, settings) -> dict:
    """Shapes, dtypes and shardings of the parameters on the current mesh, without making an array."""
    return jax.tree.map(lambda x: x, _abstract(module_class, settings, jax.sharding.get_abstract_mesh()))


@functools.cache
def _abstract(module_class, settings, mesh):
    del mesh  # in the cache key: the shardings depend on it
    return jax.eval_shape(lambda: init_params(module_class, settings, jax.random.key(0)))


@functools.cache
def module_graph(module_class, settings) -> nnx.GraphDef:
    """The static part of a module, found without making an array."""
    graphs = []

    def trace():
        graph, state = nnx.split(module_class(settings, rngs=RngKeys(jax.random.key(0))))
        graphs.append(graph)
        return state

    jax.eval_shape(trace)
    return graphs[0]


def bind(module_class, settings, params: dict):
    """The module with these parameters; cheap, to be called inside jitted functions."""
    return nnx.merge(module_graph(module_class, settings), params)


def count_params(params: dict) -> int:
    return sum(x.size for x in jax.tree.leaves(params))
