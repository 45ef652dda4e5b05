"""Agreement between the processes of a run: equal values, barriers, work that one process does for all.

All of these are collective: every process calls them in the same order. A process alone does the work and returns.
They go through JAX's coordination service, which works before there is a device.
"""

import contextlib
import hashlib
import itertools
import json
import socket
import typing
from collections.abc import Callable, Iterator, Mapping

import jax

from sora_jax import compat
from sora_jax.core.errors import InputError

ARRIVAL_SECONDS = 600  # by which processes may be apart, e.g. in reading a data set
WORK_SECONDS = 86_400  # for which the others wait while process 0 works

Result = typing.TypeVar("Result")

global_state = compat.distributed_state()
_rounds = itertools.count()  # one number for each agreement; every process counts the same


def is_multiprocess() -> bool:
    """Whether this process has joined others; looks for no device."""
    return jax.distributed.is_initialized() and global_state.num_processes > 1


def assert_equal_across_hosts(values: Mapping[str, str]):
    """Raise InputError, in every process, for the first value that differs between them; it names the host."""
    if not is_multiprocess():
        return
    text = json.dumps(dict(values), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    with _published({"host": socket.gethostname(), "hash": digest, "values": text}) as (read, decide):
        if global_state.process_id == 0:
            decide(_first_difference(dict(values), digest, read))


def barrier():
    """Wait until every process has arrived here."""
    if is_multiprocess():
        global_state.client.wait_at_barrier(f"sora_jax/{next(_rounds)}", WORK_SECONDS * 1000)


def run_on_first_host(work: Callable[[], object]):
    """Do work on process 0 alone while the others wait. Raises: InputError, in every process, if the work does."""
    if not is_multiprocess():
        return work()
    with _published({}) as (_, decide):
        if global_state.process_id == 0:
            try:
                work()
            except InputError as error:
                return decide(str(error))
            decide("")


def of_first_host(text: Callable[[], str]) -> str:
    """A text of process 0, the same in every process; only process 0 makes it."""
    if not is_multiprocess():
        return text()
    key = f"sora_jax/{next(_rounds)}/text"
    if global_state.process_id == 0:
        global_state.client.key_value_set(key, text())
    return global_state.client.blocking_key_value_get(key, WORK_SECONDS * 1000)


def raise_on_all_hosts(work: Callable[[], Result], kinds: tuple[type[Exception], ...]) -> Result:
    """Do work in every process; if it raises one of these exceptions in any process, all raise it.

    Returns: the result of this process's own work.
    """
    try:
        result, mine = work(), "-"
    except kinds as error:
        if not is_multiprocess():
            raise
        number = next(n for n, kind in enumerate(kinds) if isinstance(error, kind))
        result, mine = None, f"{number} {error}"
    if not is_multiprocess():
        return result
    try:
        with _published({"error": mine}) as (read, decide):
            if global_state.process_id == 0:
                errors = (read(process, "error") for process in range(global_state.num_processes))
                decide(next((error for error in errors if error != "-"), ""))
    except InputError as first:
        number, text = str(first).split(" ", 1)
        raise kinds[int(number)](text) from None
    return result


def flatten(values: Mapping, prefix: str = "") -> dict[str, str]:
    """Nested values under dotted names: {"a": {"b": 1}} -> {"a.b": "1"}; a ConfigDict counts as a mapping."""
    flat = {}
    for name, value in values.items():
        value = value.to_dict() if hasattr(value, "to_dict") else value
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = repr(value)
    return flat


@contextlib.contextmanager
def _published(mine: dict[str, str]) -> Iterator[tuple[Callable[[int, str], str], Callable[[str], None]]]:
    """Publish values to all processes; at the end of the block wait for the decision of process 0.

    Yields: (read(process, name) -> value, decide(error) for process 0 alone; an empty error means agreement).
    Raises: InputError with that error, in every process.
    """
    client, me = global_state.client, global_state.process_id
    here = f"sora_jax/{next(_rounds)}"
    for name, value in mine.items():
        client.key_value_set(f"{here}/{name}/{me}", value)
    yield (
        lambda process, name: client.blocking_key_value_get(f"{here}/{name}/{process}", ARRIVAL_SECONDS * 1000),
        lambda error: client.key_value_set(f"{here}/decision", error or "agreed"),
    )
    decision = client.blocking_key_value_get(f"{here}/decision", WORK_SECONDS * 1000)
    if decision != "agreed":
        raise InputError(decision)


def _first_difference(mine: dict[str, str], digest: str, read: Callable[[int, str], str]) -> str:
    """The error for the first value in which a process differs from this one; "" if all are equal."""
    different = []
    for process in range(1, global_state.num_processes):
        try:
            if read(process, "hash") != digest:
                different.append(process)
        except jax.errors.JaxRuntimeError:
            return f"process {process} of {global_state.num_processes} did not arrive within {ARRIVAL_SECONDS} s"
    if not different:
        return ""
    theirs, host = json.loads(read(different[0], "values")), read(different[0], "host")
    name = next(name for name in [*mine, *theirs] if mine.get(name) != theirs.get(name))
    more = f", and on {len(different) - 1} more" if len(different) > 1 else ""
    return (
        f"{name} differs between hosts: {mine.get(name) or 'none'} on process 0 ({socket.gethostname()}), "
        f"{theirs.get(name) or 'none'} on process {different[0]} ({host}){more}; it must be the same on all"
    )
