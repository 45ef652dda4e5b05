"""Modules as pure pytrees: parameters are plain nested dicts, the rest of a module is found by tracing.

A module class takes (settings, *, rngs). Its parameters' names, here and in every file, are the attribute names.
"""

import functools

import jax
from flax import nnx


class RngKeys:
    """The keys of `nnx.Rngs(key)`, one after the other, counted in Python.

    Flax counts them in an array, which in a traced function is a tracer; with each key JAX then writes the
    text of an error, out of all equations so far, that Flax throws away: most of an autoencoder's time to trace.
    """

    def __init__(self, key):
        self.key, self.drawn = key, 0

    def params(self) -> jax.Array:
        """The next key, for parameters; the name is Flax's."""
        key = jax.random.fold_in(self.key, self.drawn)
        self.drawn += 1
        return key


def init_params(module_class, settings, key) -> dict:
    """Fresh parameters, float32, each laid out on the current mesh as its layer says."""
    return nnx.to_pure_dict(nnx.state(module_class(settings, rngs=RngKeys(key))))


def abstract_params(module_class, settings) -> dict:
    """Shapes, dtypes and shardings of the parameters on the current mesh, without making an array."""
    return jax.tree.map(lambda x: x, _abstract(module_class, settings, jax.sharding.get_abstract_mesh()))


@functools.cache
def _abstract(module_class, settings, mesh):
    del mesh  # where they lie depends on it
    return jax.eval_shape(lambda: init_params(module_class, settings, jax.random.key(0)))


@functools.cache
def module_graph(module_class, settings) -> nnx.GraphDef:
    """The static half of a module, found without making an array."""
    graphs = []

    def trace():
        graph, state = nnx.split(module_class(settings, rngs=RngKeys(jax.random.key(0))))
        graphs.append(graph)
        return state

    jax.eval_shape(trace)
    return graphs[0]


def bind(module_class, settings, params: dict):
    """The module with these parameters; cheap, to be called inside a jitted function."""
    return nnx.merge(module_graph(module_class, settings), params)


def count_params(params: dict) -> int:
    return sum(x.size for x in jax.tree.leaves(params))
