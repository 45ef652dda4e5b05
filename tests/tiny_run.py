"""What a tiny run needs: a config, data of noise, programs compiled once, and if wanted a disk of its own."""

import contextlib
import gc
import pathlib
import subprocess

import jax
import ml_dtypes
import numpy as np
import tiny
from jax.experimental.compilation_cache import compilation_cache

from sora_jax.checkpoint.model_folder import save_model
from sora_jax.data.records.records import Clip
from sora_jax.data.records.write import finish, write_shard
from sora_jax.data.tokenizer import train_tokenizer
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import abstract_params
from sora_jax.train.objectives.flow import FlowObjective
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import init_state
from sora_jax.train.step import make_step

SETTINGS = tiny.change(tiny.SETTINGS, text={"vocabulary": 400}, train={"steps": 2, "save_every": 1})
CONFIG = """
import tiny
from sora_jax.config.load import to_config

def get_config():
    return to_config(tiny.change(
        tiny.SETTINGS, text={"vocabulary": 400}, train={"steps": 2, "save_every": 1},
        sample={"size": "32x32", "frames": 5, "steps": 1},
    ))
"""


class Run:
    """A tiny run on the current mesh."""

    def __init__(self, settings=tiny.SETTINGS):
        self.objective = FlowObjective(settings)
        self.optimizer = make_optimizer(settings.optimizer, settings.train.steps)
        self.step = make_step(self.objective, self.optimizer, settings)
        self.settings = settings

    def fresh(self):
        return init_state(self.objective, self.optimizer, jax.random.key(0))

    def go(self, steps, batches=None):
        state = self.fresh()
        for n in range(steps):
            state, metrics = self.step(state, {}, tiny.on_mesh(tiny.random_batch((batches or range(steps))[n])))
        return jax.device_get(state), {name: float(x) for name, x in metrics.items()}


def write_data(out: pathlib.Path, kind: str, settings, *, value: float | None = None):
    """A finished data set of noise: 8 clips of 5 frames, 32x32 pixels, or latents with an untrained autoencoder.

    Args:
      value: of all latents, instead of noise; and in the names of the clips.
    """
    rng = np.random.default_rng(0)
    tokenizer = train_tokenizer(["a rabbit", "a bird"], out / "tokenizer.model", vocabulary=400)
    tokens = (len(tokenizer.encode("a bird")),)
    if kind == "pixels":
        held = rng.integers(0, 256, (8, 5, 32, 32, 3)).astype(np.uint8)
    else:
        held = rng.normal(size=(8, 2, 4, 4, settings.latent_channels)).astype(ml_dtypes.bfloat16)
        held = held if value is None else np.full_like(held, value)
        shapes = abstract_params(Autoencoder, settings)
        params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
        save_model(out / "autoencoder", Autoencoder, settings, params)
    arrays = {kind: (None, None, None, held.shape[-1])}
    prefix = "" if value is None else f"all-{value}-"
    shards, described = {}, {"frames": 5, "height": 32, "width": 32, "shape": held.shape[1:], "tokens": tokens}
    for split in ("train", "validation"):
        names = [f"{prefix}{i}.mp4" for i in range(8)]
        clips = [Clip(split, name, 0.0, 1.0, 16.0, captions=("a bird",), **described) for name in names]
        written = write_shard(
            out / split, arrays, [(clip, {kind: array}) for clip, array in zip(clips, held, strict=True)]
        )
        shards[split] = [(out / split, *written)]
    finish(out, arrays, shards, {"kind": kind, "generation": 1}, {})


@contextlib.contextmanager
def compiled_once(folder: pathlib.Path):
    """What XLA has compiled for the first of many runs of one model serves the others."""
    changes = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in changes}

    def set_to(values):
        compilation_cache.reset_cache()
        for name, value in values.items():
            jax.config.update(name, value)

    set_to(changes)
    try:
        yield
    finally:
        set_to(before)


class Disk:
    """A small disk of its own. Raises: PermissionError where none can be mounted."""

    def __init__(self, path: pathlib.Path, size: int):
        self.path = path
        path.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True)
        if done.returncode:
            raise PermissionError("a disk to fill can't be mounted here: that needs root and CAP_SYS_ADMIN")

    def grow(self, size: int):
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)

    def close(self):
        gc.collect()  # files that are held open would keep the disk in use
        subprocess.run(["umount", "--lazy", self.path], check=True)
