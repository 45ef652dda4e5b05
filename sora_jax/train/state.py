"""What a run carries from one step to the next, and keeps on disk."""

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """step: updates done, skipped ones among them; params and ema: float32 nested dicts; opt_state: Optax's.

    The next batch is number `step`, and so are its noise and its times: a run goes on where its state says.
    """

    step: jax.Array
    params: dict
    ema: dict
    opt_state: optax.OptState


def init_state(objective, optimizer, key) -> TrainState:
    """A fresh state, made on the chips that hold it: call it under the mesh."""

    def make(key):
        params = objective.init(key)
        # The average starts as a copy, not as the same buffers: the state is donated to each step.
        ema = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))

    return jax.jit(make)(key)


def abstract_state(objective, optimizer) -> TrainState:
    """Shapes, dtypes and shardings of the state, without making an array."""
    return jax.eval_shape(lambda: init_state(objective, optimizer, jax.random.key(0)))
