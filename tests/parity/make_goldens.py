"""Record what diffusers and transformers make of random weights, for the tests that run without torch.

Run: python tests/parity/make_goldens.py   (needs sora_jax[parity]; rewrites the files in tests/goldens)
"""

import pathlib
import sys

import numpy as np
import safetensors.numpy

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from diffusers_autoencoder import decode_theirs, encode_theirs, make_theirs
from diffusers_wan import their_image, their_text, their_velocity
from wan_cases import CASES, TRANSFORMERS, random_latents, random_video

FRAMES = (1, 9)
FOLDER = pathlib.Path(__file__).parent.parent / "goldens"


def autoencoder_outputs() -> dict[str, np.ndarray]:
    outputs = {}
    for case, settings in CASES.items():
        model = make_theirs(settings)
        for frames in FRAMES:
            mean, logvar = encode_theirs(model, random_video(frames))
            video = decode_theirs(model, random_latents(frames, settings))
            outputs |= {
                f"{case}.{frames}.{name}": x for name, x in (("mean", mean), ("logvar", logvar), ("video", video))
            }
    return outputs


def main():
    velocities = {f"velocity.{case}": their_velocity(case) for case in TRANSFORMERS}
    for name, outputs in (
        ("autoencoder", autoencoder_outputs()),
        ("wan", velocities | {"text": their_text(), "image": their_image()}),
    ):
        path = FOLDER / f"{name}.safetensors"
        safetensors.numpy.save_file({key: np.ascontiguousarray(x) for key, x in outputs.items()}, path)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
