"""Noise of packed clips: a clip draws the same numbers wherever it lies, whatever lies beside it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.tree_util.register_dataclass, data_fields=["keys", "places"], meta_fields=["longest"])
@dataclasses.dataclass(frozen=True)
class ClipNoise:
    """A random key for each clip, and where the clips lie.

    keys: data of the keys, [B, G, 2] uint32.
    places: for each patch g * longest + n, if it is patch n of clip g of its sequence, [B, N] int32; None: each
      sequence is one clip.
    longest: patches of the longest clip.
    """

    keys: jax.Array
    places: jax.Array | None = None
    longest: int = 0

    def draw(self, shape, step=None):
        """Normal numbers for patches [B, N, P], float32, on every chip.

        A clip of n patches gets the first n P numbers of its key, so that longer ones of the sequence change none.

        Args:
          step: of the solver, a scalar; each has numbers of its own. None: the noise that sampling begins with.
        """
        _, N, P = shape
        patches = N if self.places is None else self.longest

        def of_clip(key):
            key = jax.random.wrap_key_data(key, impl="threefry2x32")
            return jax.random.normal(key if step is None else jax.random.fold_in(key, step), (patches, P))

        drawn = jax.vmap(jax.vmap(of_clip))(self.keys)
        if self.places is None:
            return drawn[:, 0]
        return jnp.take_along_axis(jnp.reshape(drawn, (len(drawn), -1, P)), self.places[..., None], axis=1)
