"""Whether a model of the shapes world hears which word of a caption belongs to which thing.

    python tests/benchmarks/shapes/binding.py runs/shapes [--scenes=96] [--frames=17] [--colours=red,orange,yellow]

Prints the error of the data that the model predicts, at times from 0.5 to 0.97, of pictures of two things of
different shapes and sizes, or of videos of two that move in different ways: with the right caption, with an
attribute swapped between the things, and with none. If a swapped one costs nothing, captions are bags of words to
it. Takes half a minute on 2 cores, of videos two.
"""

import argparse
import dataclasses
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh, spec
from sora_jax.core.patches import PatchBatch, grid_positions, patch_grid, patchify
from sora_jax.diffusion.flow import time_table
from sora_jax.generate.generator import load_generator, video_size
from sora_jax.generate.sampling.pipeline import tokenize
from sora_jax.models.autoencoder.streaming import encode_stream
from sora_jax.models.layers.params import bind
from sora_jax.models.video_model import VideoModel
from sora_jax.worlds.shapes.captions import caption
from sora_jax.worlds.shapes.renderer import COLOURS, render, sample_scene

SEED = 991  # of the world
TIMES = (0.5, 0.7, 0.8, 0.88, 0.94, 0.97)
SWAPPED = {"shape": ("shape",), "colour": ("colour",), "size": ("size",)}
OF_VIDEOS = {"motion": ("motion", "speed")}


def swap(scene, attributes):
    """The scene with attributes swapped between its two things."""
    a, b = ({name: getattr(thing, name) for name in attributes} for thing in scene.things)
    first, second = scene.things
    return dataclasses.replace(scene, things=(dataclasses.replace(first, **b), dataclasses.replace(second, **a)))


def told_apart(scene, moving):
    a, b = scene.things
    return a.shape != b.shape and a.size != b.size and (not moving or a.motion != b.motion)


def errors(generator, latents, captions):
    """Mean squared error of the data predicted of latents [B, F', h, w, C], at each of TIMES."""
    settings = generator.settings
    patch, grid = settings.transformer.patch, patch_grid(latents.shape[1:4], settings.transformer.patch)
    data = patchify(jnp.asarray(latents), patch)
    noise = jax.random.normal(jax.random.key(0), data.shape)
    B, N, _ = data.shape
    text, text_segment_ids = tokenize(generator, captions)
    batch = PatchBatch(
        patches=np.asarray(data),
        positions=np.broadcast_to(grid_positions(grid), (B, N, 3)),
        segment_ids=np.ones((B, N), np.int32),
        conditioning_mask=np.zeros((B, N), bool),
        text=text,
        text_segment_ids=text_segment_ids,
    )
    batch = jax.tree.map(lambda x: jax.device_put(x, spec("batch" + " ." * (x.ndim - 1))), batch)

    @jax.jit
    def error(params, batch, t):
        model = bind(VideoModel, settings, params)
        x = (1 - t) * data + t * noise
        table, time_index = time_table(batch, jnp.full((B, 1), t, jnp.float32))
        return jnp.square(x - t * model.velocity(model.embed_text(batch), x, table, time_index) - data).mean()

    return [float(error(generator.params, batch, t)) for t in TIMES]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=pathlib.Path)
    parser.add_argument("--scenes", type=int, default=96)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--colours", type=lambda text: text.split(","), default=list(COLOURS))
    asked = parser.parse_args()
    moving = asked.frames > 1
    generator = load_generator(asked.workdir)
    sample, coder = generator.settings.sample, (generator.autoencoder_params, generator.autoencoder)
    size, fps = video_size(sample), sample.fps
    drawn = (sample_scene(SEED, index, things=2, colours=asked.colours) for index in itertools.count())
    unlike = (scene for scene in drawn if told_apart(scene, moving))
    scenes = list(itertools.islice(unlike, asked.scenes))
    latents = np.stack(
        [
            np.concatenate(list(encode_stream(*coder, render(scene, frames=asked.frames, size=size, fps=fps))))
            for scene in scenes
        ]
    )
    swapped = SWAPPED | (OF_VIDEOS if moving else {})
    told = {"right": scenes} | {
        name: [swap(s, attributes) for s in scenes] for name, attributes in swapped.items()
    }
    captions = {
        name: [caption(scene, "plain", moving=moving, bounced=[False, False]) for scene in described]
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
