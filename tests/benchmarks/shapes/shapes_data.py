"""Render, caption and encode the data that the shapes model learned from, set by set (`configs/shapes.py`).

    python tests/benchmarks/shapes/shapes_data.py pairs2 across17 --out=data [--count=100]

Each set is a folder of its own, for config.data.path="data/pairs2:6,data/across17:2". 6,000 videos of 17
frames take about three minutes on one core; a stopped call can be repeated.
"""

import argparse
import pathlib
import sys

import rich.console

from sora_jax.cli.main import main as sora_jax
from sora_jax.core.errors import InputError
from sora_jax.core.progress import progress_bar
from sora_jax.worlds.shapes import SHIPPED_AUTOENCODER, SHIPPED_MODEL
from sora_jax.worlds.shapes.renderer import World, write_world

CONFIG = pathlib.Path(__file__).parents[3] / "configs/shapes.py"
ACROSS, ALONG = ({"things": 2, "motions": ways} for ways in (("left", "right"), ("up", "down")))
WARM = {"things": 2, "colours": ("red", "orange", "yellow")}
PICTURES, SHORT = {"lengths": (1,)}, {"lengths": (5,)}

# Name -> seed, number, options of `World`.
SETS = {
    "images": (21, 16_000, PICTURES),
    "single": (22, 10_000, {"things": 1}),
    "videos": (23, 8_000, {}),
    "short": (24, 5_000, SHORT),
    "aspects": (25, 2_000, {"sizes": ("96x64", "64x96")}),
    "long": (26, 1_200, {"lengths": (33,)}),
    "pairs": (27, 8_000, PICTURES | {"things": 2}),
    "double": (28, 4_000, {"things": 2}),
    "pairs2": (31, 40_000, PICTURES | {"things": 2}),
    "short2": (41, 12_000, SHORT | {"things": 2}),
    "double2": (42, 6_000, {"things": 2}),
    "short3": (43, 12_000, SHORT | {"things": 2}),
    "middle": (45, 6_000, {"lead_in": 48}),
    "warmpairs": (47, 12_000, PICTURES | WARM),
    "warmshort": (48, 4_000, SHORT | WARM),
    "across": (49, 6_000, SHORT | ACROSS),
    "along": (50, 6_000, SHORT | ALONG),
    "across17": (51, 3_000, ACROSS),
    "along17": (52, 3_000, ALONG),
    "warmpairs2": (53, 24_000, PICTURES | WARM),
    "warmshort2": (54, 8_000, SHORT | WARM),
    "warm17": (55, 3_000, WARM),
    "pairs3": (56, 30_000, PICTURES | {"things": 2}),
    "images2": (57, 24_000, PICTURES | {"things": 1}),
    "across2": (58, 5_000, SHORT | ACROSS),
    "along2": (59, 5_000, SHORT | ALONG),
    "middle2": (60, 5_000, {"lead_in": 48}),
    "across3": (61, 6_000, ACROSS),
    "along3": (62, 6_000, ALONG),
    "single2": (63, 6_000, {"things": 1}),
    "warm17more": (64, 8_000, WARM),
    "single3": (65, 6_000, {"things": 1}),
    "double3": (66, 4_000, {"things": 2}),
}


def make(name: str, out: pathlib.Path, count: int | None, console: rich.console.Console):
    """A set as latents, in the folder `out`/NAME; its videos lie in `out`/rendered/NAME."""
    seed, number, options = SETS[name]
    number = count or number
    videos = out / "rendered" / name
    with progress_bar(console) as bar:
        task = bar.add_task(f"{name}: rendering", total=number, numbers="")
        write_world(videos, number, World(seed, **options), progress=lambda done: bar.update(task, completed=done))
    code = sora_jax(
        [
            "prepare",
            f"--config={CONFIG}",
            f"--videos={videos}",
            f"--out={out / name}",
            f"--config.data.sizes={options.get('sizes', ('64x64',))}",
            f"--config.data.frames={options.get('lengths', (17,))}",
            f"--autoencoder={SHIPPED_AUTOENCODER}",
            f"--tokenizer={SHIPPED_MODEL / 'tokenizer.model'}",
        ]
    )
    if code:
        raise InputError(f"{name}: `sora-jax prepare` failed, see above")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", choices=SETS, metavar="SET", help=", ".join(SETS))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--count", type=int, help="videos of each set, to try it; else all")
    asked = parser.parse_args()
    for name in asked.sets:
        make(name, asked.out, asked.count, rich.console.Console(stderr=True))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
