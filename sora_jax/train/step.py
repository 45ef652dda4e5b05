"""One update: a pure function of the state and a batch."""

import functools

import jax
import jax.numpy as jnp
import optax

from sora_jax.config.schema import Settings
from sora_jax.core.random_keys import seed_key
from sora_jax.train.optimizer import gradient_norms, learning_rate
from sora_jax.train.state import TrainState


def make_step(objective, optimizer, settings: Settings):
    """The jitted step: (state, frozen_params, batch) -> (state, metrics); it donates the state.

    Metrics are float32 scalars: loss; gradient_norm before clipping, and gradient_norm_PLAYER for each of the
    objective's players; learning_rate; skipped (1: the loss or the gradient was not finite, and only `step` of the
    state has changed); and the objective's own.
    """
    return jax.jit(functools.partial(train_step, objective, optimizer, settings), donate_argnums=0)


def train_step(objective, optimizer, settings: Settings, state: TrainState, frozen_params, batch):
    """The update without jit; all randomness is a function of the seed and the number of updates done.

    A skipped update counts as done: the next one has another batch and other noise.
    """
    drawn = objective.draw(seed_key(settings.train.seed), batch, state.step)
    inputs = (batch, drawn)
    grads, sums, weight = accumulate(objective, state.params, frozen_params, inputs, settings.train.accumulate)
    grads, metrics = jax.tree.map(lambda x: x / weight, (grads, sums))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=state.step)
    params = optax.apply_updates(state.params, updates)
    norm = optax.tree.norm(grads)
    # Loss and norm are sums over all devices, so every host gets the same values.
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    params, opt_state = jax.tree.map(
        lambda after, before: jnp.where(finite, after, before),
        (params, opt_state),
        (state.params, state.opt_state),
    )
    # The decay warms up with the number of updates, so that the average forgets the random initialisation.
    decay = jnp.minimum(settings.optimizer.ema_decay, (1.0 + state.step) / (10.0 + state.step))
    # Average the selected parameters: averaging earlier would materialise both candidates.
    gain = jnp.where(finite, 1 - decay, 0)
    ema = jax.tree.map(lambda average, p: average + gain * (p - average), state.ema, params)
    metrics |= {"gradient_norm": norm, "skipped": 1.0 - finite.astype(jnp.float32)}
    metrics |= {f"gradient_norm_{name}": x for name, x in gradient_norms(grads, objective.players).items()}
    schedule = learning_rate(settings.optimizer, settings.train.steps)
    metrics["learning_rate"] = schedule(opt_state[0].updates)
    return TrainState(state.step + 1, params, ema, opt_state), metrics


def accumulate(objective, params, frozen_params, inputs, parts: int):
    """Gradients and sums of the loss over the whole batch, made in `parts` micro-batches.

    Returns: (gradients of the summed loss, sums to divide by the weight, the weight).
    """

    def grads_of(inputs):
        def loss(params):
            total, weight, sums = objective.loss(params, frozen_params, *inputs)
            return total, ({"loss": total} | sums, weight)

        grads, (sums, weight) = jax.grad(loss, has_aux=True)(params)
        return grads, sums, weight

    if parts == 1:
        return grads_of(inputs)
    split = jax.tree.map(lambda x: split_batch(x, parts), inputs)
    sums = jax.eval_shape(grads_of, jax.tree.map(lambda x: x[0], split))
    # Constants, such as a weight, have no sharding.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding and x.sharding.spec), sums)

    def add(carry, inputs):
        return jax.tree.map(jnp.add, carry, grads_of(inputs)), None

    return jax.lax.scan(add, zeros, split)[0]


def split_batch(x, parts: int):
    """[B, ...] -> [parts, B / parts, ...] without moving a row to another device."""
    rows = x.shape[0] // parts
    axes = jax.typeof(x).sharding.spec
    axes = jax.P(axes[0] if axes else None, None, *axes[1:])
    return jnp.moveaxis(jnp.reshape(x, (rows, parts, *x.shape[1:]), out_sharding=axes), 1, 0)
