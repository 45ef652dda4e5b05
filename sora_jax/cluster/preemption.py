"""SIGTERM to any process of a run: all processes save after the same update, and end."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from sora_jax.cluster.join import has_preemption_service


@contextlib.contextmanager
def preemption(start: int) -> Iterator[Callable[[int], bool]]:
    """Handle SIGTERM in the block.

    With several processes JAX handles the signal, and its coordination service finds an update after which all can
    stop: the next one after the last that any process asked about. So every process asks after every update, and
    once before the first. A process alone has no such service. Where there is one, a handler of Python's would
    take the signal away from it.

    Args:
      start: updates done so far.
    Yields: reached(step): whether to save and end after that update, the same on all processes.
    """
    if jax.distributed.is_initialized():
        if not has_preemption_service():  # joined by another command, or by the caller
            yield lambda step: False
            return
        multihost_utils.reached_preemption_sync_point(start)
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield lambda step: False
        return
    signalled = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: signalled.set())
    try:
        yield lambda step: signalled.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
