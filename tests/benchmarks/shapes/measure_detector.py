"""How far the detector of the shapes world can be trusted: rendered, coded, reconstructed, and other clips.

    python tests/benchmarks/shapes/measure_detector.py [CLIPS_PER_CELL] [FOLDER_OF_REAL_VIDEOS]

Prints a table in Markdown, for docs/guide/evaluating.md. 60 clips a cell take five minutes on 2 cores.
"""

import collections
import pathlib
import sys
import tempfile

import jax
import numpy as np

from sora_jax.checkpoint.model_folder import load_model
from sora_jax.config.schema import AutoencoderSettings, MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.data.media.video import count_frames, probe, read_clip, read_frames
from sora_jax.data.prepare.sources import find_sources
from sora_jax.evaluate.metrics.reconstruction import reconstruct
from sora_jax.generate.output.writer import VideoWriter
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.worlds.shapes import SHIPPED_AUTOENCODER
from sora_jax.worlds.shapes.detector import ATTRIBUTES, compare, read_scene
from sora_jax.worlds.shapes.renderer import render, sample_scene

SEED = 77
CELLS = [((64, 64), 17), ((64, 64), 33), ((64, 64), 81), ((64, 96), 17), ((96, 64), 33), ((128, 128), 17)]


def main(count: int, real: pathlib.Path | None):
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])), tempfile.TemporaryDirectory() as folder:
        settings, params = load_model(SHIPPED_AUTOENCODER, Autoencoder, AutoencoderSettings)

        def coded(video):
            path = pathlib.Path(folder) / "a.mp4"
            with VideoWriter(path, 16.0, crf=8) as writer:
                writer.write(video)
            return read_clip(probe(path), video.shape[1:3], fps=16.0, frames=len(video))

        ways = {
            "rendered": lambda video: video,
            "as mp4": coded,
            "reconstructed": lambda video: reconstruct(params, settings, video),
        }
        print(f"| | size | frames | all right | {' | '.join(ATTRIBUTES)} |\n|{'---|' * (4 + len(ATTRIBUTES))}")
        for way, change in ways.items():
            for (H, W), frames in CELLS:
                right = collections.Counter()
                for index in range(count):
                    scene = sample_scene(SEED, index, held_out=index % 2 == 0)
                    found = compare(scene, read_scene(change(render(scene, frames=frames, size=(H, W)))))
                    right.update({name: int(ok) for name, ok in found.items()} | {"all": all(found.values())})
                cells = [f"{100 * right[name] / count:.1f}" for name in ("all", *ATTRIBUTES)]
                print(f"| {way} | {W}x{H} | {frames} | {' | '.join(cells)} |", flush=True)
    for name, videos in others(real):
        finds = [read_scene(video) is not None for video in videos]
        print(f"{name}: {sum(finds)} of {len(finds)} taken for a scene", flush=True)


def others(real):
    """What shows no scene: (name, clips)."""
    draw = np.random.default_rng(SEED)
    shape = (17, 64, 64, 3)
    yield "noise, each pixel of any colour", (draw.integers(0, 256, shape, np.uint8) for _ in range(300))
    yield (
        "noise around grey",
        (np.clip(draw.normal(128, 2 + i / 3, shape), 0, 255).astype(np.uint8) for i in range(300)),
    )
    yield "one colour", (np.full(shape, draw.integers(0, 256, 3), np.uint8) for _ in range(300))
    yield "grey", (np.full(shape, level, np.uint8) for level in range(256))
    if real and real.is_dir():
        yield "real clips, 17 frames at 16 a second", real_clips(real)


def real_clips(folder):
    for source in find_sources(folder).sources:
        video = probe(source.path)
        for size in ((64, 64), (64, 112)):
            for start in range(0, min(count_frames(video, 16.0) - 16, 600), 4):
                frames = [made for (made,) in read_frames(video, [size], fps=16.0, start=start, frames=17)]
                yield np.stack(frames)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(int(arguments[0]) if arguments else 100, pathlib.Path(arguments[1]) if arguments[1:] else None)
