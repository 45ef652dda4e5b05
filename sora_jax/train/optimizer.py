"""AdamW or Muon, with warm-up, a schedule and clipping by a fixed and by a running threshold.

Sources: AdamW, Loshchilov & Hutter 2017 (arXiv 1711.05101); Muon, Jordan et al. 2024 and, for its scale,
Liu et al. 2025 (arXiv 2502.16982), Boissin et al. 2025 (arXiv 2512.04632) for its preconditioning.
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from sora_jax.config.schema import OptimizerSettings

NORM_DECAY = 0.99  # of the running mean of the gradient's norm, over about 100 updates
NORM_UPDATES = 10  # before the mean is used
EMPTY: Mapping[str, float] = MappingProxyType({})


def learning_rate(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then constant, or falling to `final_fraction` at the last of `steps`.

    Source of wsd: Hu et al. 2024 (arXiv 2404.06395), section 4.
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if settings.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, warmup, max(steps, warmup + 1), peak * settings.final_fraction
        )
    stable = optax.constant_schedule(peak)
    if settings.schedule == "wsd":
        began = max(0, steps - warmup - settings.decay_steps)
        stable = optax.linear_schedule(peak, peak * settings.final_fraction, settings.decay_steps, began)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), stable], [warmup])


def make_optimizer(
    settings: OptimizerSettings, steps: int, players: tuple[str, ...] = (), rates: Mapping[str, float] = EMPTY
) -> optax.GradientTransformationExtraArgs:
    """The optimizer that `settings.name` names; only weight matrices decay, not norms, biases and embeddings.

    Args:
      players: as in `clip_by_norms`.
      rates: as in `take_turns`; empty: all parameters change in each update.
    """
    if rates:
        return take_turns(settings, steps, rates)
    clip = clip_by_norms(settings.clip_norm, settings.spike, players)
    return optax.with_extra_args_support(optax.chain(clip, _rule(settings, steps)))


class TurnState(NamedTuple):
    """State of `take_turns`. updates: done, by any player, int32."""

    updates: jax.Array


def take_turns(
    settings: OptimizerSettings, steps: int, rates: Mapping[str, float]
) -> optax.GradientTransformationExtraArgs:
    """An optimizer for each player, of which one acts in an update: the others' parameters and states stay.

    A gradient of 0 would not do: momentum and weight decay go on. Whose turn it is comes from the number of steps
    done, given to `update` as `step`: the first player's at step 0.

    Args:
      rates: name of a top-level group of parameters -> factor of its learning rate.
    """
    names, turns = tuple(rates), len(rates)

    def rule(factor):
        clip = clip_by_norms(settings.clip_norm, settings.spike)
        return optax.chain(clip, _rule(settings, steps, turns), optax.scale(factor))

    rules = {name: rule(factor) for name, factor in rates.items()}

    def init(params):
        return TurnState(jnp.zeros((), jnp.int32)), {name: rules[name].init(params[name]) for name in names}

    def update(grads, state, params=None, *, step, **extra):
        del extra
        (done,), state = state
        made, states = {}, {}
        for n, name in enumerate(names):
            idle = jax.tree.map(jnp.zeros_like, grads[name]), state[name]
            acting = functools.partial(rules[name].update, grads[name], state[name], params[name])
            made[name], states[name] = jax.lax.cond(step % turns == n, acting, lambda idle=idle: idle)
        return made, (TurnState(done + 1), states)

    return optax.GradientTransformationExtraArgs(init, update)


def _rule(settings: OptimizerSettings, steps: int, turns: int = 1) -> optax.GradientTransformation:
    # Update number n, counted from 1, has the schedule's value at n: the first is not lost to lr = 0.
    def rate(count):
        return learning_rate(settings, steps)(count * turns + 1)

    return {"adamw": _adamw, "muon": _muon}[settings.name](settings, rate)


class NormState(NamedTuple):
    """State of `clip_by_norms`.

    updates: done, int32.
    mean: running mean of the clipped norm, float32, biased by its start at 0; a dict if there are players.
    """

    updates: jax.Array
    mean: jax.Array | dict[str, jax.Array]


def clip_by_norms(largest: float, spike: float, players: tuple[str, ...] = ()) -> optax.GradientTransformation:
    """Scale gradients down to a global norm of `largest`, and of `spike` times the running mean of their norm.

    The mean is kept even if `spike` is 0, so that a run can set it later. It is the mean of norms after clipping:
    one spike raises it by at most 1 - NORM_DECAY of `spike` times itself, and norms that stay high pass in time.
    As ZClip (arXiv 2504.02507), with a factor instead of deviations.

    Args:
      players: top-level groups of parameters, each clipped by its own norm; (): all by one.
    """

    def init(params):
        del params
        zero = jnp.zeros((), jnp.float32)
        return NormState(jnp.zeros((), jnp.int32), dict.fromkeys(players, zero) or zero)

    def clip(grads, mean, updates):
        norm = optax.tree.norm(grads)
        limit = jnp.float32(largest)
        if spike:
            unbiased = mean / (1 - NORM_DECAY ** jnp.maximum(updates, 1))
            limit = jnp.where(updates < NORM_UPDATES, limit, jnp.minimum(limit, spike * unbiased))
        clipped, _ = optax.clip_by_global_norm(limit).update(grads, optax.EmptyState())
        return clipped, mean + (1 - NORM_DECAY) * (jnp.minimum(norm, limit) - mean)

    def update(grads, state, params=None):
        del params
        if players:
            clipped, mean = {}, {}
            for name in players:
                clipped[name], mean[name] = clip(grads[name], state.mean[name], state.updates)
        else:
            clipped, mean = clip(grads, state.mean, state.updates)
        return clipped, NormState(state.updates + 1, mean)

    return optax.GradientTransformation(init, update)


def gradient_norms(grads: dict, players: tuple[str, ...]) -> dict[str, jax.Array]:
    """The global norm of each player's gradient."""
    return {name: optax.tree.norm(grads[name]) for name in players}


def _adamw(settings, rate):
    return optax.adamw(
        rate,
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        mask=lambda params: jax.tree.map_with_path(lambda path, _: _is_kernel(path), params),
    )


def _muon(settings, rate):
    """Orthogonalised momentum for the weight matrices, AdamW with Nesterov's momentum for the rest."""
    rule = muon(
        rate,
        beta=0.95,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        consistent_rms=settings.muon_rms,
        preconditioning="aol",
        ns_steps=4,
        adam_b1=settings.b1,
        adam_b2=settings.b2,
        muon_weight_dimension_numbers=lambda params: jax.tree.map_with_path(_matrix_axes, params),
    )

    def update(updates, state, params=None):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return rule.update(updates, state, params)
        # The compiler chooses the sharding of products of a sharded matrix with itself.
        out = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (updates, state))
        return jax.sharding.auto_axes(rule.update, out_sharding=out)(updates, state, params)

    return optax.GradientTransformation(rule.init, update)


def _is_kernel(path) -> bool:
    return path[-1].key == "kernel"


def _matrix_axes(path, x) -> MuonDimensionNumbers | None:
    """The axes of a weight that are its matrix's rows and columns; None if it is no matrix.

    A convolution's kernel [K_f, K_h, K_w, C_in, C_out] is one matrix from all taps' inputs to the outputs; a
    stacked kernel [L, C_in, C_out] is L matrices.
    """
    if not _is_kernel(path):
        return None
    rows = (x.ndim - 2,) if x.ndim <= 3 else tuple(range(x.ndim - 1))
    return MuonDimensionNumbers(reduction_axis=rows, output_axis=(x.ndim - 1,))
