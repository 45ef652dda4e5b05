"""Our LPIPS against the published formula in torch, with the same random weights, float32."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install sora_jax[parity]")

import safetensors.numpy
import torch
from perceptual_cases import LAYERS, pictures, random_lpips

from sora_jax.interop.lpips import load_lpips
from sora_jax.models.autoencoder.lpips import lpips

pytestmark = pytest.mark.parity


def lpips_in_torch(tensors, a, b):
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    a, b = ((torch.from_numpy(x).permute(0, 3, 1, 2) - shift) / scale for x in (a, b))
    distance = 0
    for stage, (places, _) in enumerate(LAYERS):
        features = []
        for x in (a, b):
            x = torch.nn.functional.max_pool2d(x, 2) if stage else x
            for place in places:
                weight, bias = (
                    torch.from_numpy(tensors[f"net.slice{stage + 1}.{place}.{part}"])
                    for part in ("weight", "bias")
                )
                x = torch.nn.functional.conv2d(x, weight, bias, padding=1).relu()
            features.append(x)
        a, b = features
        units = [x / (x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10) for x in features]
        weight = torch.from_numpy(tensors[f"lin{stage}.model.1.weight"])
        distance += torch.nn.functional.conv2d((units[0] - units[1]) ** 2, weight).mean(dim=(1, 2, 3))
    return distance.numpy()


def test_lpips_equals_the_published_formula(tmp_path):
    tensors = random_lpips()
    safetensors.numpy.save_file(tensors, tmp_path / "lpips.safetensors")
    ours = np.asarray(lpips(load_lpips(tmp_path / "lpips.safetensors"), *pictures()))
    theirs = lpips_in_torch(tensors, *pictures())
    print(ours, theirs)
    assert theirs[0] > 1e-3 and theirs[1] > 2 * theirs[0]
    # Thirteen convolutions in float32, summed in another order.
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
