"""Random weights of LPIPS by the published names, and pictures: for the plain tests and the parity ones."""

import numpy as np

# Places of VGG-16's convolutions in its list of layers, stage by stage, and their channels.
LAYERS = (((0, 2), 64), ((5, 7), 128), ((10, 12, 14), 256), ((17, 19, 21), 512), ((24, 26, 28), 512))


def random_lpips() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors, C_in = {}, 3
    for stage, (places, C_out) in enumerate(LAYERS):
        for place in places:
            name = f"net.slice{stage + 1}.{place}"
            scale = np.float32((2 / (9 * C_in)) ** 0.5)
            tensors[f"{name}.weight"] = rng.standard_normal((C_out, C_in, 3, 3), np.float32) * scale
            tensors[f"{name}.bias"] = rng.standard_normal(C_out, np.float32) * np.float32(0.1)
            C_in = C_out
        tensors[f"lin{stage}.model.1.weight"] = rng.random((1, C_out, 1, 1), np.float32)
    return tensors


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Two batches of pictures [2, 36, 50, 3] in [-1, 1]: the second a little or much changed."""
    rng = np.random.default_rng(1)
    first = rng.uniform(-1, 1, (2, 36, 50, 3)).astype(np.float32)
    change = (
        rng.uniform(-1, 1, first.shape).astype(np.float32) * np.array([0.05, 0.5], np.float32)[:, None, None, None]
    )
    return first, np.clip(first + change, -1, 1)
