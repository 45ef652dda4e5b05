"""Modules as pure pytrees: parameters are plain nested dicts, the rest of a module is found by tracing.

A module class takes (settings, *, rngs). Its parameters' names, here and in every file, are the attribute names.
"""

import functools

import jax
from flax import nnx


def init_params(module_class, settings, key) -> dict:
    """Fresh parameters, float32, each laid out on the current mesh as its layer says."""
    return nnx.to_pure_dict(nnx.state(module_class(settings, rngs=nnx.Rngs(key))))


@functools.cache
def module_graph(module_class, settings) -> nnx.GraphDef:
    """The static half of a module, found without making an array."""
    graphs = []

    def trace():
        graph, state = nnx.split(module_class(settings, rngs=nnx.Rngs(jax.random.key(0))))
        graphs.append(graph)
        return state

    jax.eval_shape(trace)
    return graphs[0]


def bind(module_class, settings, params: dict):
    """The module with these parameters; cheap, to be called inside a jitted function."""
    return nnx.merge(module_graph(module_class, settings), params)
