"""Whether a model of the shapes world hears which word of a caption belongs to which thing.

    python tests/evaluation/binding.py runs/shapes [--scenes=96]

Prints the error of the data that the model predicts, at times from 0.5 to 0.97, of pictures of two things of
different shapes and sizes: with the right caption, with an attribute swapped between the things, and with none. If
a swapped one costs nothing, captions are bags of words to it. Takes half a minute on 2 cores.
"""

import argparse
import dataclasses
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.data.shapes import render, sample_scene
from sora_jax.data.shapes_captions import caption
from sora_jax.diffusion.flow import levels_of
from sora_jax.generate.images import video_size
from sora_jax.generate.pipeline import load_generator, tokenize
from sora_jax.mesh import make_mesh, spec
from sora_jax.models.module import bind
from sora_jax.models.streaming import encode_stream
from sora_jax.models.video_model import VideoModel
from sora_jax.patches import PatchBatch, grid_positions, patch_grid, patchify
from sora_jax.settings import MeshSettings

SEED = 991  # of the world
TIMES = (0.5, 0.7, 0.8, 0.88, 0.94, 0.97)
SWAPPED = ("shape", "colour", "size")


def swap(scene, attribute):
    """The scene with an attribute swapped between its two things."""
    a, b = scene.things
    values = getattr(a, attribute), getattr(b, attribute)
    return dataclasses.replace(
        scene,
        things=(
            dataclasses.replace(a, **{attribute: values[1]}),
            dataclasses.replace(b, **{attribute: values[0]}),
        ),
    )


def errors(generator, latents, captions):
    """Mean squared error of the data predicted of latents [B, 1, h, w, C], at each of TIMES."""
    settings = generator.settings
    patch, grid = settings.transformer.patch, patch_grid(latents.shape[1:4], settings.transformer.patch)
    data = patchify(jnp.asarray(latents), patch)
    noise = jax.random.normal(jax.random.key(0), data.shape)
    B, N, _ = data.shape
    text, text_segments = tokenize(generator, captions)
    batch = PatchBatch(
        patches=np.asarray(data),
        positions=np.broadcast_to(grid_positions(grid), (B, N, 3)),
        segments=np.ones((B, N), np.int32),
        known=np.zeros((B, N), bool),
        text=text,
        text_segments=text_segments,
    )
    batch = jax.tree.map(lambda x: jax.device_put(x, spec("batch" + " ." * (x.ndim - 1))), batch)

    @jax.jit
    def error(params, batch, t):
        model = bind(VideoModel, settings, params)
        x = (1 - t) * data + t * noise
        table, levels = levels_of(batch, jnp.full((B, 1), t, jnp.float32))
        return jnp.square(x - t * model.velocity(model.embed_text(batch), x, table, levels) - data).mean()

    return [float(error(generator.params, batch, t)) for t in TIMES]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--scenes", type=int, default=96)
    asked = parser.parse_args()
    generator = load_generator(asked.workdir)
    size, coder = video_size(generator.settings.sample), (generator.autoencoder_params, generator.autoencoder)
    drawn = (sample_scene(SEED, index, things=2) for index in itertools.count())
    unlike = (s for s in drawn if s.things[0].shape != s.things[1].shape and s.things[0].size != s.things[1].size)
    scenes = list(itertools.islice(unlike, asked.scenes))
    latents = np.stack(
        [np.concatenate(list(encode_stream(*coder, render(scene, frames=1, size=size)))) for scene in scenes]
    )
    told = {"right": scenes} | {attribute: [swap(s, attribute) for s in scenes] for attribute in SWAPPED}
    captions = {
        name: [caption(scene, "plain", moving=False, turned=[False, False]) for scene in described]
        for name, described in told.items()
    }
    captions["none"] = [""] * len(scenes)
    print(f"{'time':8}", *(f"{t:7.2f}" for t in TIMES))
    for name, mine in captions.items():
        values = errors(generator, latents, mine)
        print(f"{name:8}", *(f"{value:7.4f}" for value in values))


if __name__ == "__main__":
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        main()
