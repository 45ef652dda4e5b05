"""The loss of the averaged weights on held-out clips, during training.

It is the training loss on clips that are not trained on, always with the same noise and times, by a program that
runs forwards only.
"""

import functools

import jax
import jax.numpy as jnp

from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import local_rows
from sora_jax.core.random_keys import Purpose, purpose_key, seed_key
from sora_jax.data.loader.mixture import Mixture
from sora_jax.data.loader.stream import Stream, validation_crops, validation_sequences
from sora_jax.train.step import split_batch

# A batch forwards costs about a third of an update: at the default interval this is half a percent of the time.
BATCHES = 16


class HeldOutLoss:
    """Measures the held-out loss at multiples of `train.eval_every`; every process takes part.

    Args:
      objective: of the run.
    Attributes:
      note: why it is not measured; "": it is.
    """

    def __init__(self, settings: Settings, objective, mesh: jax.sharding.Mesh):
        self._every, self._objective, self._stream = settings.train.eval_every, objective, None
        self.note = ""
        if self._every:
            try:
                self._stream = _open_stream(settings, mesh)
            except InputError as error:  # of a data set that can be trained on
                self.note = f"the held-out loss is not measured: {error}"
        self._sums = jax.jit(functools.partial(_sums, objective, settings.train.accumulate))
        self._batches: list | None = None

    def due(self, step: int) -> bool:
        """Whether the loss is to be measured after this update."""
        return self._stream is not None and step % self._every == 0

    def measure(self, ema: dict, frozen_params: dict) -> float:
        """The mean loss over at most BATCHES batches."""
        if self._batches is None:  # kept: they are few, and always the same
            count = min(BATCHES, self._stream.batches)
            self._batches = [self._stream.batch_at(number) for number in range(count)]
        total = weight = 0.0
        for number, batch in enumerate(self._batches):
            key = purpose_key(seed_key(0), Purpose.VALIDATION, number)
            placed = jax.block_until_ready(self._objective.place(batch))
            found = self._sums(ema, frozen_params, placed, key)
            total, weight = total + float(found[0]), weight + float(found[1])
        return total / weight


def _open_stream(settings: Settings, mesh: jax.sharding.Mesh) -> Stream | None:
    """The held-out batches; None if the data set holds none out."""
    kind = "pixels" if settings.objective == "autoencoder" else settings.data.kind
    if not sum(Mixture(settings.data.path, kind).counts("validation")):
        return None
    make_stream = validation_crops if settings.objective == "autoencoder" else validation_sequences
    return make_stream(settings, rows=local_rows(mesh, settings.data.batch))


def _sums(objective, parts: int, params, frozen_params, batch, key):
    """(sum of the loss, its weight) of a batch, in as many micro-batches as training has."""

    def sums(inputs):
        return objective.loss(params, frozen_params, *inputs)[:2]

    inputs = (batch, objective.draw(key, batch, 0))
    if parts == 1:
        return sums(inputs)
    split = jax.tree.map(lambda x: split_batch(x, parts), inputs)
    total, weight = jax.lax.map(sums, split)
    return jnp.sum(total), jnp.sum(weight)
