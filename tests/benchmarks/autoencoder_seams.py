"""How far a video decoded in blended tiles is from the same decoded whole, on real clips.

Run: python tests/benchmarks/autoencoder_seams.py --autoencoder=FOLDER [--clips=../shared/clips] [--tile=16]
Prints a Markdown table; differences are in levels of 0 to 255.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent.parent))

import numpy as np

from sora_jax.checkpoint.model_folder import load_model
from sora_jax.config.schema import AutoencoderSettings
from sora_jax.data.media.video import probe, read_clip
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.autoencoder.streaming import decode_stream, encode_stream

FRAMES, LONGEST = 9, 640


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean(np.square(a.astype(np.float64) - b)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--autoencoder", type=pathlib.Path, required=True)
    parser.add_argument("--clips", type=pathlib.Path, default="../shared/clips")
    parser.add_argument("--tile", type=int, default=16, help="side of a tile, in latents")
    options = parser.parse_args()

    settings, params = load_model(options.autoencoder, Autoencoder, AutoencoderSettings)
    side = settings.spatial_stride
    print("| clip | size | whole against input, PSNR | tiles against whole, PSNR | mean | 99.9 % below | most |")
    print("|---" * 7 + "|")
    for line in (options.clips / "captions.jsonl").read_text().splitlines():
        video = probe(options.clips / json.loads(line)["video"])
        scale = min(1, LONGEST / max(video.width, video.height))
        H, W = (int(n * scale) // side * side for n in (video.height, video.width))
        frames = read_clip(video, (H, W), fps=8.0, frames=FRAMES)
        latents = np.concatenate(list(encode_stream(params, settings, frames)))
        whole, tiles = (
            np.concatenate(list(decode_stream(params, settings, latents, tile=tile))) for tile in (0, options.tile)
        )
        error = np.abs(tiles.astype(np.int32) - whole)
        cells = f"{psnr(whole, frames):.1f} | {psnr(tiles, whole):.1f} | {error.mean():.2f} | "
        cells += f"{np.percentile(error, 99.9):.0f} | {error.max()}"
        print(f"| {video.path.stem} | {W}x{H} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
