"""AdamW or Muon, with warm-up, a schedule and clipping by a fixed and by a running threshold.

Sources: AdamW, Loshchilov & Hutter 2017 (arXiv 1711.05101); Muon, Jordan et al. 2024 and, for its scale,
Liu et al. 2025 (arXiv 2502.16982), Boissin et al. 2025 (arXiv 2512.04632) for its preconditioning.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from sora_jax.config.schema import OptimizerSettings

NORM_DECAY = 0.99  # of the running mean of the gradient's norm: it looks back on about 100 updates
NORM_UPDATES = 10  # before the mean is one to clip by


def learning_rate(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then constant, or a cosine down to `final_fraction` at the last of `steps`."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if settings.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, warmup, max(steps, warmup + 1), peak * settings.final_fraction
        )
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup), optax.constant_schedule(peak)], [warmup]
    )


def make_optimizer(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """The optimizer that `settings.name` names; only weight matrices decay, not norms, biases and embeddings."""

    # Update number n, counted from 1, has the schedule's value at n: the first is not lost to lr = 0.
    def rate(count):
        return learning_rate(settings, steps)(count + 1)

    rule = {"adamw": _adamw, "muon": _muon}[settings.name](settings, rate)
    return optax.chain(clip_by_norms(settings.clip_norm, settings.spike), rule)


class NormState(NamedTuple):
    """updates: done, int32; mean: of the gradient's norm as it was used, float32, with a start of 0 in it."""

    updates: jax.Array
    mean: jax.Array


def clip_by_norms(largest: float, spike: float) -> optax.GradientTransformation:
    """Scale gradients down to a global norm of `largest`, and of `spike` times the running mean of their norm.

    The mean is kept in any case, so that `spike` can be set when a run is under way. It is that of the norms after
    clipping: one spike raises it by 1 - NORM_DECAY of `spike` times itself, and norms that stay high are let
    through in time. (As in ZClip, arXiv 2504.02507, but with a factor instead of deviations: Optax has no such
    transformation.)
    """

    def init(params):
        del params
        return NormState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates, state, params=None):
        del params
        norm = optax.tree.norm(updates)
        limit = jnp.float32(largest)
        if spike:
            mean = state.mean / (1 - NORM_DECAY ** jnp.maximum(state.updates, 1))
            limit = jnp.where(state.updates < NORM_UPDATES, limit, jnp.minimum(limit, spike * mean))
        clipped, _ = optax.clip_by_global_norm(limit).update(updates, optax.EmptyState())
        mean = state.mean + (1 - NORM_DECAY) * (jnp.minimum(norm, limit) - state.mean)
        return clipped, NormState(state.updates + 1, mean)

    return optax.GradientTransformation(init, update)


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
        # Products of a sharded matrix with itself: which chip holds what of them is left to the compiler.
        out = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (updates, state))
        return jax.sharding.auto_axes(rule.update, out_sharding=out)(updates, state, params)

    return optax.GradientTransformation(rule.init, update)


def _is_kernel(path) -> bool:
    return path[-1].key == "kernel"


def _matrix_axes(path, x) -> MuonDimensionNumbers | None:
    """Which axes of a weight are its matrix's rows and columns; None: it is no matrix.

    A convolution's kernel [K_f, K_h, K_w, C_in, C_out] is a matrix of all taps' inputs to its outputs; the first
    axis of a stack's kernel [L, C_in, C_out] is many matrices.
    """
    if not _is_kernel(path):
        return None
    rows = (x.ndim - 2,) if x.ndim <= 3 else tuple(range(x.ndim - 1))
    return MuonDimensionNumbers(reduction_axis=rows, output_axis=(x.ndim - 1,))
