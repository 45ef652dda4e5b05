"""AdamW with warm-up, a schedule and clipping.

Source: Loshchilov & Hutter 2017 (arXiv 1711.05101).
"""

import jax
import optax

from sora_jax.settings import OptimizerSettings


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
    """AdamW; only weight matrices decay, not norms, biases, modulations and embeddings."""

    def is_kernel(params):
        return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            # Update number n, counted from 1, has the schedule's value at n: the first is not lost to lr = 0.
            lambda count: learning_rate(settings, steps)(count + 1),
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            mask=is_kernel,
        ),
    )
