"""Evaluation. Called as a function, `sora_jax.evaluate(...)`, it is `sora_jax.api.evaluate`."""

from sora_jax import make_callable

make_callable(__name__)
