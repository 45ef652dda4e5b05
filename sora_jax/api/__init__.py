"""Everything that the commands do, from Python; the commands are built on it.

`sora_jax.load`, `sora_jax.train` and `sora_jax.evaluate` are these functions. Each name is imported when it is
first used: sampling needs nothing that trains.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sora_jax.api.model import Model, Options, SampleOptions, load
    from sora_jax.api.runs import Training, evaluate, train
    from sora_jax.api.video import Video

__all__ = ["Model", "Options", "SampleOptions", "Training", "Video", "evaluate", "load", "train"]
RUNS = ("Training", "evaluate", "train")


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'sora_jax.api' has no attribute {name!r}")
    module = "runs" if name in RUNS else "video" if name == "Video" else "model"
    return getattr(importlib.import_module(f"sora_jax.api.{module}"), name)
