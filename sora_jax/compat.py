"""Every private function and undocumented API of other libraries that this package uses.

Each entry says what public API would replace it, and with which version it was checked.
`tests/core/test_compat.py` calls them all. Imports are inside the functions, so that a process pays only for those
that it calls.
"""

import contextlib
import functools
import os


def cudnn_attention(q, k, v, lengths, starts, *, scale):
    """cuDNN's attention within runs, [B, N, A, K].

    Replaced by: `jax.nn.dot_product_attention(implementation="cudnn")`, once it takes the starts of several runs;
    it takes lengths. Checked: jax 0.10.2.

    Args:
      lengths: of queries and keys, [B, runs] int32 each; [B] if there are no starts.
      starts: of queries and keys, [B, runs + 1] int32 each; empty for one run from the beginning.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    mask_type = cudnn.MaskType.NO_MASK if starts else cudnn.MaskType.PADDING
    return cudnn.dot_product_attention(q, k, v, None, None, *lengths, *starts, scale=scale, mask_type=mask_type)


# The primitive of cuDNN's forward pass, for a policy of jax.checkpoint; its outputs bear no name that
# `save_only_these_names` could take. Replaced by: a `checkpoint_name` around them in JAX. Checked: jax 0.10.2.
CUDNN_FORWARD_PRIMITIVE = "dot_product_attention_fwd_wrapper"


def gpu_has_compute_capability(least: str) -> bool:
    """Whether the default backend is an NVIDIA GPU of at least this compute capability, e.g. "9.0".

    Replaced by: `jax.devices()[0].compute_capability`, once it is documented. Checked: jax 0.10.2.
    """
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo.check_compute_capability(least)


@contextlib.contextmanager
def assume_compute_capability(capability: str):
    """While it lasts, JAX's rules of what cuDNN can do are answered for a GPU of this compute capability.

    Replaced by: rules in JAX that ask the devices compiled for, not those of this machine. Checked: jax 0.10.2.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    assumed = tuple(map(int, capability.split(".")))
    answers = {
        "check_compute_capability": lambda least: assumed >= tuple(map(int, least.split("."))),
        "is_cuda_compute_capability_equal": lambda other: assumed == tuple(map(int, other.split("."))),
    }
    before = {name: getattr(cudnn, name) for name in answers}
    for name, answer in answers.items():
        setattr(cudnn, name, answer)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(cudnn, name, function)


def cuda_versions():
    """Versions of the CUDA libraries in jax's plugin (cudnn_get_version() ...), or None without one.

    Replaced by: `jax.print_environment_info`, once it returns them. Checked: jax 0.10.2.
    """
    from jax._src.lib import cuda_versions

    return cuda_versions


def distributed_state():
    """The state of jax.distributed in this process: client, process_id, num_processes, coordinator_address.

    Replaced by: `jax.process_index` and `jax.process_count`, which start the backend too early here, and a public
    key-value store and barrier. Checked: jax 0.10.2.
    """
    from jax._src.distributed import global_state

    return global_state


def in_known_cluster() -> bool:
    """Whether JAX would find the coordinator and the number of processes by itself here (Slurm, Cloud TPU, ...).

    Replaced by: a public `jax.distributed.is_cluster_env`. Checked: jax 0.10.2.
    """
    from jax._src import clusters

    kinds = clusters.ClusterEnv._cluster_types
    return any(kind.is_env_present() for kind in kinds if not kind.opt_in_only_method)


def array_metadata_store():
    """Orbax's store of the shapes of sharded arrays, which its array handler needs to write them beside the
    arrays.

    Replaced by: `orbax.checkpoint.array_metadata_store`, once it is exported. Checked: orbax-checkpoint 0.12.8.
    """
    from orbax.checkpoint._src.metadata.array_metadata_store import Store

    return Store()


@functools.cache
def let_orbax_use_s3():
    """Have Orbax read and write s3:// through TensorStore's driver for it, as it does gs://.

    Without it Orbax refuses such a path, or writes to a folder of this name. Checkpoints need
    `AtomicityMode.COMMIT_FILE`: a folder in a bucket can't be renamed. Replaced by: Orbax's own support of s3://.
    Checked: orbax-checkpoint 0.12.8.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    normalized, gcs_spec = tensorstore_utils._normalize_path, gcs_utils.get_kvstore_for_gcs

    def spec(path: str) -> dict:
        if not path.startswith("s3://"):
            return gcs_spec(path)
        bucket, _, key = path.removeprefix("s3://").partition("/")
        found = {"driver": "s3", "bucket": bucket, "path": key}
        # TensorStore reads neither of these itself.
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
            found["endpoint"] = endpoint
        if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            found["aws_region"] = region
        return found

    tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(("gs://", "s3://"))
    tensorstore_utils._normalize_path = lambda path: normalized(path).replace("s3:/", "s3://")
    gcs_utils.get_kvstore_for_gcs = spec
