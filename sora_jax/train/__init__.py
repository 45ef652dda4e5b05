"""Training. Called as a function, `sora_jax.train(...)`, it is `sora_jax.api.train`."""

from sora_jax import make_callable

make_callable(__name__)
