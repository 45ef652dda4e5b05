"""Joining the processes of a run: how they find each other, and the checks before they compute.

On Cloud TPU, on GKE's TPUs and on Slurm, JAX finds the other processes by itself. Elsewhere these variables name
them; where they are set, they win:

    SORA_JAX_COORDINATOR    host:port of process 0, the same for all
    SORA_JAX_NUM_PROCESSES  number of processes; 1: this one alone, whatever JAX finds
    SORA_JAX_PROCESS_ID     number of this process, from 0
    SORA_JAX_NUM_DEVICES    number of devices of all processes; any other number stops the run
    SORA_JAX_START_SECONDS  how long to wait for the others; 300

A process alone starts nothing. Several processes stop with one line if they differ in versions, flags, config or
devices: collectives of programs that differ wait for each other forever.
"""

import atexit
import collections
import contextlib
import difflib
import hashlib
import os
import pathlib
import platform
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping

import jax
import jaxlib
import rich.console

import sora_jax
from sora_jax import compat
from sora_jax.cluster.agreement import assert_equal_across_hosts, barrier, flatten, is_multiprocess
from sora_jax.core.errors import EXIT_RETRY, AbsentError, InputError, Terminated

PREFIX = "SORA_JAX_"
VARIABLES = tuple(
    PREFIX + name for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID", "NUM_DEVICES", "START_SECONDS")
)
COORDINATOR, NUM_PROCESSES, PROCESS_ID, NUM_DEVICES, START_SECONDS = VARIABLES
DEFAULT_START_SECONDS = 300  # as in JAX
LEAVE_SECONDS = 3  # to wait for the others to fail as well
GPU_MEMORY_FRACTION = 0.92  # preallocated by JAX; the rest is for CUDA, cuDNN and NCCL

global_state = compat.distributed_state()


@contextlib.contextmanager
def joined_processes(asked: Mapping, console: rich.console.Console, *, handles_sigterm: bool):
    """Join the other processes, if there are any, for the block.

    Args:
      asked: flags and config of the command, which must be the same everywhere.
      console: made silent on all processes but the first.
      handles_sigterm: whether the command heeds SIGTERM (`cluster.preemption`); else SIGTERM ends the process.
    Raises: InputError, in every process, if processes or devices are missing or differ.
    """
    try:
        reserve_cpu_threads()
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
        jax.config.update("jax_enable_preemption_service", handles_sigterm)
        join(asked)
        console.quiet = is_multiprocess() and global_state.process_id > 0
        yield
        barrier()  # JAX's own end gives the slower ones five minutes
    except BaseException as error:
        if is_multiprocess():
            atexit.register(_leave, exit_code(error))
        raise


def exit_code(error: BaseException) -> int:
    if isinstance(error, InputError):
        return error.code
    if isinstance(error, Terminated):
        return 143
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def reserve_cpu_threads():
    """Give XLA:CPU enough threads for more than two fake devices; call it before the first array.

    XLA:CPU makes a thread for each device or core. A device can wait in a collective inside a loop and in another
    one beside it (see `mesh.over_gloo`); when all threads wait, XLA aborts. Two devices have no collective in a
    loop, and more threads would slow them down.
    """
    devices = jax.config.jax_num_cpu_devices
    if devices > 2:
        os.environ.setdefault("PJRT_NPROC", str(max(os.cpu_count() or 1, 4 * devices)))


def has_preemption_service() -> bool:
    """Whether the processes joined with JAX's service that agrees on a last update."""
    return global_state.preemption_sync_manager is not None


def join(asked: Mapping):
    """Start `jax.distributed` if there are several processes, and check that they are alike."""
    promised = read_variables()
    if not jax.distributed.is_initialized() and (arguments := _initialize_arguments(promised)) is not None:
        _initialize(arguments, promised.get(START_SECONDS, DEFAULT_START_SECONDS))
    if is_multiprocess():
        assert_equal_across_hosts(versions() | compiler_flags() | flatten(asked))
    if jax.distributed.is_initialized() or NUM_DEVICES in promised:
        check_devices(promised)


def read_variables() -> dict:
    """The values of SORA_JAX_*. Raises: InputError for a bad value or a misspelt name."""
    for name in os.environ:
        close = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.8)
        if name.startswith(PREFIX) and name not in VARIABLES and close:
            raise InputError(f"{name}: no such variable, did you mean {close[0]}?")
    values: dict = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    for name, least in ((NUM_PROCESSES, 1), (PROCESS_ID, 0), (NUM_DEVICES, 1), (START_SECONDS, 1)):
        if name in values:
            if not values[name].isdecimal() or int(values[name]) < least:
                raise InputError(f"{name}={values[name]}: a whole number is needed, {least} or more")
            values[name] = int(values[name])
    if COORDINATOR in values and not re.fullmatch(r".+:\d+", values[COORDINATOR]):
        raise InputError(f"{COORDINATOR}={values[COORDINATOR]}: write host:port, for example 10.0.0.2:8476")
    return values


def _initialize_arguments(promised: dict) -> dict | None:
    """Arguments of `jax.distributed.initialize`; None if this process is alone."""
    by_hand = [name for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if name in promised]
    if by_hand == [NUM_PROCESSES] and promised[NUM_PROCESSES] == 1:
        return None
    if COORDINATOR in promised or PROCESS_ID in promised:
        if len(by_hand) < 3:
            missing = next(name for name in VARIABLES[:3] if name not in promised)
            raise InputError(f"{missing}: is missing beside {by_hand[0]}={promised[by_hand[0]]}")
        if promised[PROCESS_ID] >= promised[NUM_PROCESSES]:
            raise InputError(
                f"{PROCESS_ID}={promised[PROCESS_ID]}: of {promised[NUM_PROCESSES]} processes; count from 0"
            )
        return {
            "coordinator_address": promised[COORDINATOR],
            "num_processes": promised[NUM_PROCESSES],
            "process_id": promised[PROCESS_ID],
            "cluster_detection_method": "deactivate",
        }
    if compat.in_known_cluster():
        return _slurm_devices()
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        raise InputError(
            f"this is a pod of an indexed Job, and nothing says where the others are: set {COORDINATOR}, "
            f"{NUM_PROCESSES} and {PROCESS_ID} as launch/gke.py does, or {NUM_PROCESSES}=1 for each pod alone"
        )
    if NUM_PROCESSES in promised:
        raise InputError(
            f"{NUM_PROCESSES}={promised[NUM_PROCESSES]}, but JAX finds no cluster here: "
            f"set {COORDINATOR} and {PROCESS_ID}, too"
        )
    return None


def _slurm_devices() -> dict:
    """All GPUs of a node for its only task: by itself JAX gives each task one GPU, and the others stay idle."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 1(x4), or 2,1
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if {part.partition("(")[0] for part in tasks.split(",")} == {"1"} and gpus.isdecimal():
        return {"local_device_ids": list(range(int(gpus)))}
    return {}


def _initialize(arguments: dict, seconds: int):
    """`jax.distributed.initialize`, which aborts without a Python exception if a process does not come in time."""
    timer = threading.Timer(seconds, _give_up, (arguments, seconds))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=seconds + 30)
    except (RuntimeError, ValueError) as error:
        raise AbsentError(f"the processes can't find each other: {str(error).splitlines()[0]}") from error
    finally:
        timer.cancel()


def _give_up(arguments: dict, seconds: int):
    """Say who is missing, as far as this process can tell, and end it."""
    address = arguments.get("coordinator_address") or global_state.coordinator_address
    name = f"process {arguments.get('process_id', global_state.process_id)}"
    if address is None:
        reason = "the address of process 0 is not known"
    elif _listens(address):
        reason = (
            f"process 0 listens at {address}, but not all have come; start it on every host, each with its own id"
        )
    else:
        reason = f"nothing listens at {address}; is process 0 running, and does a firewall let its port through?"
    print(f"sora-jax: {name} waited {seconds} s for the others: {reason}", file=sys.stderr, flush=True)
    os._exit(EXIT_RETRY)


def _listens(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False


def versions() -> dict[str, str]:
    """Releases, and a hash of sora_jax's source: hosts compile the same programs only if these are equal."""
    folder = pathlib.Path(sora_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return {
        "sora_jax": f"{sora_jax.__version__}, source {digest.hexdigest()[:8]}",
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
    }


def compiler_flags() -> dict[str, str]:
    """Environment variables that change compiled programs; flags for dumping may differ between hosts."""
    names = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64")
    return {
        name: " ".join(flag for flag in os.environ.get(name, "").split() if not flag.startswith("--xla_dump"))
        for name in names
    }


def check_devices(promised: dict):
    """Raise InputError if the processes or devices are not as many as promised, or not alike."""
    devices, processes = jax.devices(), jax.process_count()
    if NUM_PROCESSES in promised and processes != promised[NUM_PROCESSES]:
        raise InputError(
            f"{processes} processes are there, but {NUM_PROCESSES}={promised[NUM_PROCESSES]} are promised"
        )
    counts = collections.Counter(device.process_index for device in devices)
    usual = counts.most_common(1)[0][1]
    odd = {process: counts[process] for process in range(processes) if counts[process] != usual}
    if odd:
        process, count = next(iter(odd.items()))
        more = f", and {len(odd) - 1} more processes differ" if len(odd) > 1 else ""
        raise InputError(f"process {process} has {count} devices, most have {usual}{more}; is one of them broken?")
    if NUM_DEVICES in promised and len(devices) != promised[NUM_DEVICES]:
        raise InputError(
            f"{len(devices)} {devices[0].device_kind} devices are there, {usual} in each of {processes} "
            f"processes, but {NUM_DEVICES}={promised[NUM_DEVICES]} are promised"
        )
    kinds = sorted({device.device_kind for device in devices})
    if len(kinds) > 1:
        raise InputError(f"devices of {len(kinds)} kinds in one run: {', '.join(kinds)}")


def _leave(code: int):
    """End a failed process at once: a normal exit would wait for the others, which wait for this one."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        # When all made the same mistake, all report it before process 0 goes and takes the others with it.
        global_state.client.wait_at_barrier("sora_jax/leave", LEAVE_SECONDS * 1000)
    sys.stdout.flush()
    sys.stderr.flush()
    if global_state.process_id == 0:
        time.sleep(1)
    os._exit(code)
