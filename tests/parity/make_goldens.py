"""Record what diffusers' AutoencoderKLWan makes of random weights, for the tests that run without torch.

Run: python tests/parity/make_goldens.py   (needs sora_jax[parity]; rewrites tests/goldens/autoencoder.safetensors)
"""

import json
import pathlib
import sys

import numpy as np
import safetensors.numpy

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from diffusers_autoencoder import decode_theirs, encode_theirs, make_theirs
from wan_cases import CASES, random_latents, random_video

FRAMES = (1, 9)
PATH = pathlib.Path(__file__).parent.parent / "goldens" / "autoencoder.safetensors"


def main():
    outputs, shapes = {}, {}
    for case, settings in CASES.items():
        model, tensors = make_theirs(settings)
        shapes[case] = json.dumps({name: tensor.shape for name, tensor in tensors.items()})
        for frames in FRAMES:
            mean, logvar = encode_theirs(model, random_video(frames))
            video = decode_theirs(model, random_latents(frames, settings))
            found = {"mean": mean, "logvar": logvar, "video": video}
            outputs |= {f"{case}.{frames}.{name}": np.ascontiguousarray(x) for name, x in found.items()}
    safetensors.numpy.save_file(outputs, PATH, metadata=shapes)
    print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
