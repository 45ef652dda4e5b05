"""Our solvers against diffusers' schedulers, driven by the same velocity, float32."""

import functools

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install sora_jax[parity]")
diffusers = pytest.importorskip("diffusers", reason="parity needs diffusers: pip install sora_jax[parity]")

import jax
import torch

from sora_jax.diffusion.solvers import dpm, unipc

pytestmark = pytest.mark.parity
STEPS = 10


def velocity(x, t, module):
    return module.sin(3 * x + 5 * t) - 0.7 * x + 0.5


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("solver, scheduler", [(unipc, "UniPC"), (dpm, "DPMSolver")])
def test_trajectory_equals_diffusers(solver, scheduler, shift):
    theirs = getattr(diffusers, f"{scheduler}MultistepScheduler")(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    theirs.set_timesteps(STEPS)
    noise = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    times = theirs.sigmas.numpy()
    assert times.shape == (STEPS + 1,) and times[-1] == 0
    x = torch.from_numpy(noise)
    for t, sigma in zip(theirs.timesteps, theirs.sigmas, strict=False):
        x = theirs.step(velocity(x, sigma, torch), t, x, return_dict=False)[0]
    assert np.abs(x.numpy() - noise).max() > 0.5
    ours = jax.jit(functools.partial(solver, functools.partial(velocity, module=jax.numpy)))(noise, times)
    np.testing.assert_allclose(ours, x.numpy(), atol=1e-5)
