"""Threads that compute give way to those that answer requests."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

STEPS = 10  # of the scheduler's priority, of which a process has 40


def give_way():
    """Lower the priority of this thread, and of threads that it starts, where the system can (Linux)."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + STEPS))


def giving_way(function, *args, **options):
    """function(*args, **options) in a thread that gives way; JAX's own threads do so too if it starts them."""
    with ThreadPoolExecutor(1, initializer=give_way) as executor:
        return executor.submit(function, *args, **options).result()
