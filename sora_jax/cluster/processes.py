"""Many processes, one program: how they find each other, and what they make sure of before they compute.

On Cloud TPU, on GKE's TPUs and on Slurm, JAX finds the other processes by itself. Elsewhere, and where that is
wrong, these variables say it, and they win:

    SORA_JAX_COORDINATOR    host:port of process 0, the same for all
    SORA_JAX_NUM_PROCESSES  how many there are; 1: this one alone, whatever JAX finds
    SORA_JAX_PROCESS_ID     which this one is, from 0
    SORA_JAX_NUM_DEVICES    over all processes: fewer or more stop the run
    SORA_JAX_START_SECONDS  how long to wait for the others; 300

On a machine alone, nothing is started. With many processes, all of them stop with one line if they differ in
versions, configs, compiler flags or devices: compiled programs that differ wait for each other for ever.
"""

import atexit
import collections
import contextlib
import difflib
import hashlib
import itertools
import json
import os
import pathlib
import platform
import re
import socket
import sys
import threading
import time
import typing
from collections.abc import Callable, Mapping

import jax
import jaxlib
import rich.console

# Private, but what `jax.distributed.initialize` itself asks, and what Orbax talks through: it works before there
# is a device, so hosts whose versions differ are found before they compile anything.
from jax._src import clusters
from jax._src.distributed import global_state

import sora_jax
from sora_jax.core.errors import EXIT_RETRY, AbsentError, InputError

PREFIX = "SORA_JAX_"
VARIABLES = tuple(
    PREFIX + name for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID", "NUM_DEVICES", "START_SECONDS")
)
COORDINATOR, NUM_PROCESSES, PROCESS_ID, NUM_DEVICES, START_SECONDS = VARIABLES
START = 300  # seconds, as in JAX
AGREE = 600  # seconds that hosts may be apart, in reading a data set for one
LEAVE = 3  # seconds to wait for the others to fail as well
DAY = 86_400  # seconds; while process 0 writes, the others wait
# Of a GPU's memory, what JAX takes at once. The rest is for CUDA, cuDNN and NCCL; by itself JAX leaves a quarter.
GPU_SHARE = 0.92

Made = typing.TypeVar("Made")

_rounds = itertools.count()  # of what is agreed on; every process counts the same


@contextlib.contextmanager
def started(asked: Mapping, console: rich.console.Console, *, hears_sigterm: bool):
    """Join the other processes, if there are any, for what is done in the block.

    Args:
      asked: what was asked for, flags and config: it must be the same everywhere.
      console: is made silent on all processes but the first.
      hears_sigterm: for `train.preemption`; else it ends a process, as it does where there is no JAX.
    Raises: InputError, in every process, if not all came, or they or their devices are not what was promised.
    """
    try:
        allow_waits()
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_SHARE))
        jax.config.update("jax_enable_preemption_service", hears_sigterm)
        start(asked)
        console.quiet = _many() and global_state.process_id > 0
        yield
        barrier()  # JAX's own end gives the slower ones five minutes
    except BaseException as error:
        if _many():
            code = (
                error.code if isinstance(error, InputError) else 130 if isinstance(error, KeyboardInterrupt) else 1
            )
            atexit.register(_leave, code)
        raise


def allow_waits():
    """Give many fake devices of a CPU threads for all that they wait in at once; before there is any array.

    XLA:CPU (jaxlib 0.10.2) makes a thread per device or core, and a device that waits in a loop's collective may
    wait in one beside it, too (see `mesh.over_gloo`): once all threads wait, XLA aborts. Two devices share out a
    batch and have no collective in a loop, and more threads would cost them a tenth of their speed.
    """
    devices = jax.config.jax_num_cpu_devices
    if devices > 2:
        os.environ.setdefault("PJRT_NPROC", str(max(os.cpu_count() or 1, 4 * devices)))


def ends_together() -> bool:
    """Whether the processes have joined with the service by which they agree on an end; see `started`."""
    return global_state.preemption_sync_manager is not None


def start(asked: Mapping):
    """Start `jax.distributed` where there are several processes, and check what they are; see `started`."""
    wanted = promised()
    if not jax.distributed.is_initialized() and (found := _arguments(wanted)) is not None:
        _initialize(found, wanted.get(START_SECONDS, START))
    if _many():
        assert_equal_across_hosts(versions() | environment() | flat(asked))
    if jax.distributed.is_initialized() or NUM_DEVICES in wanted:
        check_devices(wanted)


def promised() -> dict:
    """The values of SORA_JAX_*. Raises: InputError for one that can't be, or a name that is nearly one."""
    for name in os.environ:
        close = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.8)
        if name.startswith(PREFIX) and name not in VARIABLES and close:
            raise InputError(f"{name}: no such variable, did you mean {close[0]}?")
    wanted: dict = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    for name, least in ((NUM_PROCESSES, 1), (PROCESS_ID, 0), (NUM_DEVICES, 1), (START_SECONDS, 1)):
        if name in wanted:
            if not wanted[name].isdecimal() or int(wanted[name]) < least:
                raise InputError(f"{name}={wanted[name]}: a whole number is needed, {least} or more")
            wanted[name] = int(wanted[name])
    if COORDINATOR in wanted and not re.fullmatch(r".+:\d+", wanted[COORDINATOR]):
        raise InputError(f"{COORDINATOR}={wanted[COORDINATOR]}: write host:port, for example 10.0.0.2:8476")
    return wanted


def _arguments(wanted: dict) -> dict | None:
    """What `jax.distributed.initialize` needs to be told; None if this process is alone."""
    by_hand = [name for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if name in wanted]
    if by_hand == [NUM_PROCESSES] and wanted[NUM_PROCESSES] == 1:
        return None
    if COORDINATOR in wanted or PROCESS_ID in wanted:
        if len(by_hand) < 3:
            missing = next(name for name in VARIABLES[:3] if name not in wanted)
            raise InputError(f"{missing}: is missing beside {by_hand[0]}={wanted[by_hand[0]]}")
        if wanted[PROCESS_ID] >= wanted[NUM_PROCESSES]:
            raise InputError(
                f"{PROCESS_ID}={wanted[PROCESS_ID]}: of {wanted[NUM_PROCESSES]} processes; count from 0"
            )
        return {
            "coordinator_address": wanted[COORDINATOR],
            "num_processes": wanted[NUM_PROCESSES],
            "process_id": wanted[PROCESS_ID],
            "cluster_detection_method": "deactivate",
        }
    if any(kind.is_env_present() for kind in clusters.ClusterEnv._cluster_types if not kind.opt_in_only_method):
        return _slurm_devices()
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        raise InputError(
            f"this is a pod of an indexed Job, and nothing says where the others are: set {COORDINATOR}, "
            f"{NUM_PROCESSES} and {PROCESS_ID} as launch/gke.py does, or {NUM_PROCESSES}=1 for each pod alone"
        )
    if NUM_PROCESSES in wanted:
        raise InputError(
            f"{NUM_PROCESSES}={wanted[NUM_PROCESSES]}, but JAX finds no cluster here: "
            f"set {COORDINATOR} and {PROCESS_ID}, too"
        )
    return None


def _slurm_devices() -> dict:
    """All of a node's GPUs for its one task: JAX takes one for each task, and would leave the others idle."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 1(x4), or 2,1
    gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if {part.partition("(")[0] for part in tasks.split(",")} == {"1"} and gpus.isdecimal():
        return {"local_device_ids": list(range(int(gpus)))}
    return {}


def _initialize(arguments: dict, seconds: int):
    """`jax.distributed.initialize`, which aborts without a Python exception if not all come in time."""
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
    """What must be the same on all hosts for their programs to be: releases, and the source of sora_jax itself."""
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


def environment() -> dict[str, str]:
    """Variables that change the programs that are compiled; where a host dumps them is its own affair."""
    names = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64")
    flags = {name: os.environ.get(name, "").split() for name in names}
    return {
        name: " ".join(flag for flag in value if not flag.startswith("--xla_dump"))
        for name, value in flags.items()
    }


def flat(values: Mapping, prefix: str = "") -> dict[str, str]:
    """Nested values with one dotted name each: {"a": {"b": 1}} -> {"a.b": "1"}."""
    named = {}
    for name, value in values.items():
        value = value.to_dict() if hasattr(value, "to_dict") else value  # a ConfigDict
        named |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": repr(value)}
        )
    return named


def assert_equal_across_hosts(values: Mapping[str, str]):
    """Make sure that every process has the same values. Must be called by all of them, in the same order.

    Raises: InputError, in every process, that names the first value that differs, and the host.
    """
    if not _many():
        return
    text = json.dumps(dict(values), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with _published({"host": socket.gethostname(), "hash": digest, "values": text}) as (read, verdict):
        if global_state.process_id == 0:
            verdict(_difference(dict(values), digest, read))


def barrier():
    """Wait until every process has come here. Must be called by all of them, in the same order."""
    if _many():
        global_state.client.wait_at_barrier(f"sora_jax/{next(_rounds)}", DAY * 1000)


def run_on_first_host(work: Callable[[], None]):
    """Do work on process 0 alone while the others wait. Must be called by all of them, in the same order.

    Raises: InputError, in every process, if the work does.
    """
    if not _many():
        return work()
    with _published({}) as (_, verdict):
        if global_state.process_id == 0:
            try:
                work()
            except InputError as error:
                return verdict(str(error))
            verdict("")


def raise_on_all_hosts(work: Callable[[], Made], kinds: tuple[type[Exception], ...]) -> Made:
    """Do work in every process; if it fails in one with an error of these kinds, all raise it.

    Must be called by all of them, in the same order.
    """
    try:
        made, mine = work(), "-"
    except kinds as error:
        if not _many():
            raise
        made, mine = None, f"{next(n for n, kind in enumerate(kinds) if isinstance(error, kind))} {error}"
    if not _many():
        return made
    try:
        with _published({"error": mine}) as (read, verdict):
            if global_state.process_id == 0:
                told = (read(process, "error") for process in range(global_state.num_processes))
                verdict(next((error for error in told if error != "-"), ""))
    except InputError as first:
        kind, text = str(first).split(" ", 1)
        raise kinds[int(kind)](text) from None
    return made


@contextlib.contextmanager
def _published(mine: dict[str, str]):
    """Show values to all processes; at the end of the block take up what process 0 says of them.

    Yields: (read(process, name) -> its value, verdict(text) for process 0: "" if all is well).
    """
    client, me = global_state.client, global_state.process_id
    here = f"sora_jax/{next(_rounds)}"
    for name, value in mine.items():
        client.key_value_set(f"{here}/{name}/{me}", value)
    yield (
        lambda process, name: client.blocking_key_value_get(f"{here}/{name}/{process}", AGREE * 1000),
        lambda text: client.key_value_set(f"{here}/verdict", text or "agreed"),
    )
    text = client.blocking_key_value_get(f"{here}/verdict", DAY * 1000)
    if text != "agreed":
        raise InputError(text)


def _difference(mine: dict[str, str], digest: str, read) -> str:
    """The first value in which any process differs from this one, "" if none does."""
    others, different = range(1, global_state.num_processes), []
    for process in others:
        try:
            if read(process, "hash") != digest:
                different.append(process)
        except jax.errors.JaxRuntimeError:
            return f"process {process} of {global_state.num_processes} has not come after {AGREE} s"
    if not different:
        return ""
    theirs, host = json.loads(read(different[0], "values")), read(different[0], "host")
    name = next(name for name in [*mine, *theirs] if mine.get(name) != theirs.get(name))
    more = f", and on {len(different) - 1} more" if len(different) > 1 else ""
    return (
        f"{name} differs between hosts: {mine.get(name) or 'none'} on process 0 ({socket.gethostname()}), "
        f"{theirs.get(name) or 'none'} on process {different[0]} ({host}){more}; it must be the same on all"
    )


def check_devices(wanted: dict):
    """Raise InputError if processes or devices are not as many as promised, or not alike."""
    devices, processes = jax.devices(), jax.process_count()
    if NUM_PROCESSES in wanted and processes != wanted[NUM_PROCESSES]:
        raise InputError(
            f"{processes} processes are there, but {NUM_PROCESSES}={wanted[NUM_PROCESSES]} are promised"
        )
    counts = collections.Counter(device.process_index for device in devices)
    usual = counts.most_common(1)[0][1]
    odd = {process: counts[process] for process in range(processes) if counts[process] != usual}
    if odd:
        process, count = next(iter(odd.items()))
        more = f", and {len(odd) - 1} more processes differ" if len(odd) > 1 else ""
        raise InputError(f"process {process} has {count} devices, most have {usual}{more}; is one of them broken?")
    if NUM_DEVICES in wanted and len(devices) != wanted[NUM_DEVICES]:
        raise InputError(
            f"{len(devices)} {devices[0].device_kind} devices are there, {usual} in each of {processes} "
            f"processes, but {NUM_DEVICES}={wanted[NUM_DEVICES]} are promised"
        )
    kinds = sorted({device.device_kind for device in devices})
    if len(kinds) > 1:
        raise InputError(f"devices of {len(kinds)} kinds in one run: {', '.join(kinds)}")


def _many() -> bool:
    # Without asking for it, no device is looked for.
    return jax.distributed.is_initialized() and global_state.num_processes > 1


def _leave(code: int):
    """End a process that failed at once: at its normal end it would wait for the others, which wait for it."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        # Where all made the same mistake, all tell it and go before process 0, which takes the others with it.
        global_state.client.wait_at_barrier("sora_jax/leave", LEAVE * 1000)
    sys.stdout.flush()
    sys.stderr.flush()
    if global_state.process_id == 0:
        time.sleep(1)
    os._exit(code)
