"""Eight fake devices on the CPU, one program at a time, and a mesh for every test that wants one."""

import contextlib
import gc
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests compile many programs and run each a few times: these and jax_disable_most_optimizations, below, halve
# the time, with the same maths. XLA:CPU's older emitters write less code for each fusion, and to split it up for
# many threads takes longer than they save.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
# Without the lines of Python that made each operation: a twelfth of the time to compile.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import bucket_servers
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# With more fake devices than cores a second queued program can take the threads that the first one's collective
# waits for; XLA:CPU then aborts.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_disable_most_optimizations", True)
# A traced program is many small objects that stay: to look through them for garbage takes another twentieth.
gc.set_threshold(100_000, 50, 100)
jax.config.update("jax_remove_size_one_mesh_axis_from_type", True)
# What one test has compiled serves the others, those of other processes too (packed by zstandard, if it is there).
CACHE = tempfile.TemporaryDirectory(prefix="sora_jax-compiled-", ignore_cleanup_errors=True)
os.environ.setdefault("SORA_JAX_COMPILED", CACHE.name)  # pytest-xdist's processes have it from the one that began
os.environ.setdefault("SORA_JAX_FILES", f"{CACHE.name}/files")  # copies of files in buckets
os.environ.setdefault("SORA_JAX_CACHE", os.environ["SORA_JAX_COMPILED"])  # of commands that tests run as processes
jax.config.update("jax_compilation_cache_dir", os.environ["SORA_JAX_COMPILED"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

from sora_jax.cluster.join import reserve_cpu_threads
from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.core.storage import as_path

reserve_cpu_threads()
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def one_device():
    """A mesh of one device, set for the test."""
    mesh = make_mesh(MeshSettings(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture
def optimized():
    """All of a compiler's optimizations: other tests want their programs soon."""
    few = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", few)


@pytest.fixture(scope="session")
def clips() -> pathlib.Path:
    """The folder of real captioned clips."""
    folder = pathlib.Path(os.environ.get("SORA_JAX_CLIPS", ROOT / "../shared/clips")).resolve()
    if not (folder / "captions.jsonl").exists():
        pytest.skip(f"no real clips in {folder}; set SORA_JAX_CLIPS")
    return folder


@pytest.fixture(scope="session")
def bucket_server():
    """A function: "gs" or "s3" -> the address of its server, which runs until the end of the session."""
    addresses = {}
    with contextlib.ExitStack() as stack:

        def address_of(storage: str) -> str:
            if storage not in addresses:
                addresses[storage] = stack.enter_context(bucket_servers.SERVERS[storage]())
                os.environ.update(bucket_servers.environment(storage, addresses[storage]))
            return addresses[storage]

        yield address_of


@pytest.fixture(params=["disk", "gs", "s3"])
def folder(request, tmp_path, bucket_server):
    """An empty folder on a disk, and a bucket of each kind: for tests of what works the same on all of them."""
    if request.param == "disk":
        return tmp_path
    return as_path(bucket_servers.new_bucket(request.param, bucket_server(request.param)))
