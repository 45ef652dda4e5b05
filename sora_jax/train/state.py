"""The training state: carried from step to step, and saved in checkpoints."""

import jax
import jax.numpy as jnp
import optax
from flax import struct


class TrainState(struct.PyTreeNode):
    """The training state.

    The next batch, its noise and its times are functions of `step`, so the state alone says where a run continues.

    Attributes:
      step: updates done, skipped ones included, int32.
      params, ema: trained parameters and their moving average, float32 nested dicts.
      opt_state: Optax's.
    """

    step: jax.Array
    params: dict
    ema: dict
    opt_state: optax.OptState


def init_state(objective, optimizer, key) -> TrainState:
    """A new state, made on the devices that hold it. Call it under the mesh."""

    def make(key):
        params = objective.init(key)
        # Copied, because params and ema are both donated to the first step.
        ema = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))

    return jax.jit(make)(key)


def abstract_state(objective, optimizer) -> TrainState:
    """Shapes, dtypes and shardings of the state, without making an array."""
    return jax.eval_shape(lambda: init_state(objective, optimizer, jax.random.key(0)))
