"""JAX's persistent compilation cache, on unless it is turned off: what was compiled once is loaded later."""

import hashlib
import os
import pathlib
import platform
import sys

import platformdirs

VARIABLE = "SORA_JAX_CACHE"
JAX_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
OFF = "none"
MAX_BYTES = 2 * 2**30  # per kind of machine; what was used longest ago goes first
# JAX leaves out what compiles faster than a second; sampling has dozens of such programs.
MIN_SECONDS = 0.1


def use_compile_cache():
    """Keep compiled programs in $SORA_JAX_CACHE, by default in the platform's folder for caches.

    To be called before JAX is imported. Nothing happens if SORA_JAX_CACHE is "none", or if JAX's own
    JAX_COMPILATION_CACHE_DIR is set. JAX's key holds its version, the program, the flags and the device; several
    processes may share a folder.
    """
    if "jax" in sys.modules or JAX_VARIABLE in os.environ or not (folder := cache_folder()):
        return
    local = "://" not in folder
    os.environ[JAX_VARIABLE] = folder
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(MIN_SECONDS))
    if local:
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(MAX_BYTES))  # a bucket can't be locked


def cache_folder() -> str:
    """The folder of compiled programs, which may be in a bucket; "" if there is none."""
    if folder := os.environ.get(JAX_VARIABLE):
        return folder
    chosen = os.environ.get(VARIABLE) or platformdirs.user_cache_dir("sora_jax")
    if chosen == OFF:
        return ""
    return f"{chosen.rstrip('/') if '://' in chosen else pathlib.Path(chosen).expanduser()}/{machine()}"


def machine() -> str:
    """A name for this kind of processor. JAX's key does not hold the instructions that a program for CPUs uses."""
    cpu = pathlib.Path("/proc/cpuinfo")
    lines = cpu.read_text(errors="replace").splitlines() if cpu.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
