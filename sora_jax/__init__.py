"""Text-to-video in JAX: a video autoencoder, a sharded diffusion transformer, and all that feeds them.

    import sora_jax

    model = sora_jax.load("shapes")
    model.sample("a small red circle moves left on a blue background").save("red.mp4")

`load`, `train` and `evaluate` are those of sora_jax.api. Importing sora_jax alone imports nothing else.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sora_jax.api import Model, Options, Training, Video, load

__version__ = "0.1.0"
__all__ = ["Model", "Options", "Training", "Video", "evaluate", "load", "train"]


def __getattr__(name: str):
    if name in ("train", "evaluate"):  # packages, which are functions as well
        return importlib.import_module(f"sora_jax.{name}")
    if name in __all__:
        return getattr(importlib.import_module("sora_jax.api"), name)
    raise AttributeError(f"module 'sora_jax' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})


class CallablePackage(types.ModuleType):
    """A package that calls the function of its own name in sora_jax.api, as `sora_jax.train(config)`."""

    def __call__(self, *args, **options):
        function = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module("sora_jax.api"), function)(*args, **options)


def make_callable(package: str):
    """Let `package` be called."""
    sys.modules[package].__class__ = CallablePackage
