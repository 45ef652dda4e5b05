"""Every entry of sora_jax.compat works with the installed versions."""

import inspect
import subprocess
import sys

import jax
import jax.extend

from sora_jax import compat


def test_cudnn_attention_takes_the_arguments_that_compat_passes():
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    names = list(inspect.signature(cudnn.dot_product_attention).parameters)
    assert names[:9] == [
        "query",
        "key",
        "value",
        "bias",
        "mask",
        "q_seqlen",
        "kv_seqlen",
        "q_offsets",
        "kv_offsets",
    ]
    assert {"scale", "mask_type"} <= set(names) and cudnn.MaskType.PADDING != cudnn.MaskType.NO_MASK
    primitives = {x.name for x in vars(cudnn).values() if isinstance(x, jax.extend.core.Primitive)}
    assert compat.CUDNN_FORWARD_PRIMITIVE in primitives


def test_gpus_are_asked_for_their_compute_capability_or_assumed_to_have_one():
    assert not compat.gpu_has_compute_capability("8.0")  # the tests run on a CPU
    with compat.assume_compute_capability("8.0"):
        assert compat.gpu_has_compute_capability("8.0") and not compat.gpu_has_compute_capability("9.0")
    assert not compat.gpu_has_compute_capability("8.0")


def test_cuda_versions_are_none_or_can_be_read():
    versions = compat.cuda_versions()
    assert versions is None or versions.cudnn_get_version() > 0


def test_a_single_process_is_not_distributed_and_in_no_known_cluster():
    state = compat.distributed_state()
    assert (state.process_id, state.num_processes, state.client, state.coordinator_address) == (0, 1, None, None)
    assert state.preemption_sync_manager is None
    assert not compat.in_known_cluster()


def test_orbax_has_a_store_of_array_metadata():
    assert hasattr(compat.array_metadata_store(), "write")


def test_orbax_itself_does_not_use_s3_yet():
    """When it does, `let_orbax_use_s3` is to be removed."""
    code = (
        "from orbax.checkpoint._src.serialization.tensorstore_utils import _use_gcs_driver as takes\n"
        "assert takes('gs://bucket/run') and not takes('s3://bucket/run')\n"
        "from sora_jax.compat import let_orbax_use_s3; let_orbax_use_s3()\n"
        "from orbax.checkpoint._src.serialization.tensorstore_utils import _use_gcs_driver as takes\n"
        "assert takes('gs://bucket/run') and takes('s3://bucket/run') and not takes('/run')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_compat_imports_nothing_before_it_is_asked():
    code = "import sys, sora_jax.compat; sys.exit(any(name in sys.modules for name in ('jax', 'orbax', 'flax')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
