"""Whether every true clip of the emoji world is recognised, after H.264.

python tests/benchmarks/emoji/measure_detector.py data/emoji/animations
"""

import argparse
import pathlib
import tempfile

import numpy as np

from sora_jax.data.media.write import write_clip
from sora_jax.evaluate.benchmark import read_video
from sora_jax.worlds.emoji.animations import FPS, over_colour
from sora_jax.worlds.emoji.captions import BACKGROUNDS
from sora_jax.worlds.emoji.detector import Gallery
from sora_jax.worlds.emoji.subjects import all_emoji
from sora_jax.worlds.emoji.videos import backgrounds_of

MEASURES = ("identity", "tone", "background", "smooth")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("animations", type=pathlib.Path)
    gallery, found = Gallery(parser.parse_args().animations), []
    asked = sorted(((backgrounds_of(e, 1)[0], e) for e in all_emoji().values()), key=lambda pair: pair[0])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.mp4"
        for background, emoji in asked:
            loop = over_colour(gallery.loop(emoji.code), BACKGROUNDS[background])
            write_clip(path, np.concatenate([loop, loop[:1]]), fps=FPS)
            found.append(gallery.measure(emoji.code, background, read_video(path)))
            wrong = [name for name in MEASURES[:3] if found[-1][name] is False]
            if wrong:
                print(f"{emoji.code} on {background}: {', '.join(wrong)} wrong, nearest {found[-1]['nearest']}")
    for name in MEASURES:
        there = [f[name] for f in found if f[name] is not None]
        print(f"{name}: {sum(there)} of {len(there)}")
    motion, seam = (np.array([f[name] for f in found]) for name in ("motion", "seam"))
    print(f"motion: at least {motion.min():.3f}")
    print(f"seam: median {np.median(seam):.2f}, 95 % below {np.quantile(seam, 0.95):.2f}")


if __name__ == "__main__":
    main()
