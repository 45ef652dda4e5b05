"""Being told to end: SIGTERM to any process of a run, which all of them heed after the same update."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from sora_jax.cluster.processes import ends_together


@contextlib.contextmanager
def preemption(start: int) -> Iterator[Callable[[int], bool]]:
    """Heed SIGTERM in the block.

    Among several processes JAX does: it hears the signal, and its coordination service finds the update after
    which all can stop, the next one after the last that anybody asked about. So every process asks after every
    update, and once before the first: of a run that goes on at step 40, nobody would ask about step 1. A process
    alone has no such service; where there is one, a handler of Python's would take the signal away from it.

    Args:
      start: updates done so far.
    Yields: reached(step): whether to save and end after that update, the same on all processes.
    """
    if jax.distributed.is_initialized() and not ends_together():  # joined for another verb, or by the caller
        yield lambda step: False
        return
    if jax.distributed.is_initialized():
        multihost_utils.reached_preemption_sync_point(start)
        yield multihost_utils.reached_preemption_sync_point
        return
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python hears signals in that one alone
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield lambda step: told.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
