"""A released model with further layers, which begin as nothing: it makes what it made, and can learn more.

    python tests/benchmarks/shapes/grow.py sora_jax/worlds/shapes/weights grown --layers=0,1,2,2,3,3,4,5

A layer that is named once more is a copy whose outputs are zero, so that its input passes as it is. Training goes
on with `--config.train.init_from=grown` and the new number of layers. Source: Wu et al. 2024 (arXiv 2401.02415),
section 3.1, block expansion.
"""

import argparse
import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
from flax import traverse_util

from sora_jax.checkpoint.model_folder import load_model, save_model
from sora_jax.checkpoint.workdir import RELEASED, STEP, find_checkpoint
from sora_jax.config.schema import MeshSettings, Settings
from sora_jax.core.mesh import make_mesh
from sora_jax.models.video_model import VideoModel

OUTPUTS = ("out", "down")  # what a layer adds comes from these


def grow(settings: Settings, params: dict, order: list[int]) -> tuple[Settings, dict]:
    """The settings and parameters of the model whose layers are those of `order`, a second one of each silent."""
    first = jnp.array([layer not in order[:i] for i, layer in enumerate(order)])

    def taken(path, x):
        if path[:2] != ("transformer", "blocks"):
            return x
        x = x[jnp.array(order)]
        return jnp.where(first.reshape(-1, *[1] * (x.ndim - 1)), x, 0) if path[-2] in OUTPUTS else x

    params = {path: taken(path, x) for path, x in traverse_util.flatten_dict(params).items()}
    transformer = dataclasses.replace(settings.transformer, layers=len(order), unroll=len(order))
    return dataclasses.replace(settings, transformer=transformer), traverse_util.unflatten_dict(params)


def layers_of(text: str) -> list[int]:
    return [int(layer) for layer in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--layers", required=True, type=layers_of, help="in their new order, by commas")
    asked = parser.parse_args()
    folder, step = find_checkpoint(asked.model)
    settings, params = load_model(folder, VideoModel, Settings)
    if set(asked.layers) != set(range(settings.transformer.layers)):
        parser.error(f"--layers: {asked.layers} are not all of 0 to {settings.transformer.layers - 1}")
    if asked.out.exists():
        parser.error(f"{asked.out}: is there already; name a new folder")
    shutil.copytree(asked.model, asked.out)
    settings, params = grow(settings, params, asked.layers)
    save_model(asked.out / RELEASED, VideoModel, settings, params, dtype="bfloat16", metadata={STEP: str(step)})


if __name__ == "__main__":
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        main()
