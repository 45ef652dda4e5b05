"""Eight fake devices on the CPU, one program at a time, and a mesh for every test that wants one."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# With more fake devices than cores a second queued program can take the threads that the first one's collective
# waits for; XLA:CPU then aborts.
jax.config.update("jax_cpu_enable_async_dispatch", False)
# The tests compile many programs and run each a few times: half the time, with the same maths.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_remove_size_one_mesh_axis_from_type", True)

from sora_jax.mesh import make_mesh
from sora_jax.settings import MeshSettings

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def one_device():
    """A mesh of one device, set for the test."""
    mesh = make_mesh(MeshSettings(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture(scope="session")
def clips() -> pathlib.Path:
    """The folder of real captioned clips."""
    folder = pathlib.Path(os.environ.get("SORA_JAX_CLIPS", ROOT / "../shared/clips")).resolve()
    if not (folder / "captions.jsonl").exists():
        pytest.skip(f"no real clips in {folder}; set SORA_JAX_CLIPS")
    return folder
