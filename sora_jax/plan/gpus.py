"""NVIDIA GPUs as compilation targets of JAX's CUDA plugin, on a machine without GPU or driver.

Without a GPU XLA's autotuner can't time anything and takes its defaults: its own matrix products, where cuBLAS
may be faster. Fusion, memory and communication are as on the GPU.
"""

import contextlib

from jax.experimental import topologies

from sora_jax import compat
from sora_jax.plan.topology import GIB, Chip, Topology

# By JAX's device_kind: compute capability, number of multiprocessors, float32 units of each, KiB of shared
# memory of each (a block may use all but one), MiB of L2 cache, GHz. Source: NVIDIA's white papers of the A100
# and the H100, and the tables of its CUDA C++ programming guide; an H200 is an H100 with other memory.
UNITS = {
    "NVIDIA A100-SXM4-80GB": ("8.0", 108, 64, 164, 40, 1.41),
    "NVIDIA H100 80GB HBM3": ("9.0", 132, 128, 228, 50, 1.98),
    "NVIDIA H200": ("9.0", 132, 128, 228, 50, 1.98),
}
# Numbers written out here are the same for all of them, by the same tables.
TARGET = """
platform_name: "CUDA"
device_description_str: "{kind}"
dnn_version_info {{ major: {dnn[0]} minor: {dnn[1]} patch: {dnn[2]} }}
runtime_version {{ major: {cuda[0]} minor: {cuda[1]} patch: 0 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {multiprocessors}
  fpus_per_core: {units}
  clock_rate_ghz: {clock}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {most}
  shared_memory_per_core: {shared}
  l2_cache_size: {l2}
  memory_bandwidth: {rate}
  device_memory_size: {memory}
}}
"""


def make_gpus(topology: Topology) -> list:
    """The GPUs of a topology, as compilation targets."""
    node = topology.chip.node
    nodes, gpus = max(1, topology.devices // node), min(topology.devices, node)
    described = topologies.get_topology_desc(
        platform="cuda", topology=f"1x{nodes}x{gpus}", target_config=target(topology.chip)
    )
    return list(described.devices)


def target(chip: Chip) -> str:
    """XLA's description of a GPU, a GpuTargetConfigProto as text; cuDNN and CUDA are the installed versions."""
    capability, multiprocessors, units, shared, l2, clock = UNITS[chip.kind]
    major, minor = capability.split(".")
    versions = compat.cuda_versions()
    dnn, cuda = versions.cudnn_get_version(), versions.cuda_runtime_get_version()
    return TARGET.format(
        kind=chip.kind,
        dnn=(dnn // 10000, dnn // 100 % 100, dnn % 100),
        cuda=(cuda // 1000, cuda // 10 % 100),
        major=major,
        minor=minor,
        multiprocessors=multiprocessors,
        units=units,
        clock=clock,
        most=(shared - 1) * 1024,
        shared=shared * 1024,
        l2=l2 * 2**20,
        rate=int(chip.hbm_rate),
        memory=int(chip.hbm * GIB),
    )


@contextlib.contextmanager
def compiling_for(chip: Chip):
    """A context in which JAX's checks for cuDNN are made for that GPU, not for the GPU of this machine."""
    if not chip.node:
        yield
        return
    with compat.assume_compute_capability(UNITS[chip.kind][0]):
        yield
