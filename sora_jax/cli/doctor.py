"""The command `doctor`."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator

from packaging.requirements import Requirement

import sora_jax
from sora_jax.cli.compile_cache import MAX_BYTES, VARIABLE, cache_folder
from sora_jax.cli.flags import Command, Flag
from sora_jax.core.errors import InputError, printable

GIVEN = dict(os.environ)  # as the program was started with it; `main` adds to it
GIB = 2**30
LEAST_MEMORY, LEAST_DISK = 4 * GIB, 2 * GIB
STEERING = ("JAX_", "XLA_", "LIBTPU_", "CUDA_VISIBLE_DEVICES", "SORA_JAX_", "GLIBC_TUNABLES")
DEVICES = """
import json, jax
found = jax.devices()
kinds = sorted({(device.platform, device.device_kind) for device in found})
print(json.dumps({"count": len(found), "kinds": kinds}))
"""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A line of the report.

    Args:
      name: what was looked at.
      value: what was found.
      problem: what is wrong with it; "": nothing.
      remedy: what to type, or to do, against the problem.
    """

    name: str
    value: str
    problem: str = ""
    remedy: str = ""


def run(values, console):
    problems = 0
    for title, findings in (
        ("Installed", installed()),
        ("Machine", machine()),
        ("Devices", devices(values.timeout)),
        ("Files", files()),
        ("Environment", environment()),
    ):
        print(f"{title}:")
        for finding in findings:
            print(f"  {'✗' if finding.problem else ' '} {finding.name:<18}{printable(finding.value)}", flush=True)
            if finding.problem:
                problems += 1
                print(f"      {printable(finding.problem)}\n      -> {finding.remedy}", flush=True)
    if problems:
        raise InputError(f"{problems} problem{'s' * (problems > 1)}; what to do stands below each, after ->")
    print("Nothing is wrong.")


def installed() -> Iterator[Finding]:
    """Python, this package, and what it requires; then its extras."""
    yield Finding("python", f"{platform.python_version()} at {sys.executable}")
    yield Finding("sora_jax", f"{sora_jax.__version__} at {pathlib.Path(sora_jax.__file__).parent}")
    try:
        about = importlib.metadata.metadata("sora_jax")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("requirements", "unknown", "the package is not installed", "pip install sora_jax")
        return
    required = [Requirement(line) for line in about.get_all("Requires-Dist", [])]
    for requirement in required:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        if not version or not requirement.specifier.contains(version, prereleases=True):
            wanted = str(requirement).partition(";")[0].strip()
            yield Finding(requirement.name, version or "absent", f"needed: {wanted}", f"pip install '{wanted}'")
        elif requirement.name in ("jax", "flax", "orbax-checkpoint", "grain", "av"):
            yield Finding(requirement.name, version)
    for extra in about.get_all("Provides-Extra", []):
        lacks = absent_of_extra("sora_jax", extra)
        text = f"lacks {', '.join(lacks)}: pip install 'sora_jax[{extra}]'" if lacks else "installed"
        yield Finding(f"extra {extra}", text)


def absent_of_extra(package: str, extra: str) -> list[str]:
    """Names of the packages that an extra asks for, such as jax[tpu], and that are not installed."""
    required = [Requirement(line) for line in importlib.metadata.requires(package) or ()]
    absent = []
    for line in required:
        if not line.marker or line.marker.evaluate({"extra": ""}) or not line.marker.evaluate({"extra": extra}):
            continue
        if not version_of(line.name):
            absent.append(line.name)
        else:
            absent += [name for inner in sorted(line.extras) for name in absent_of_extra(line.name, inner)]
    return absent


def version_of(name: str) -> str:
    """The installed version of a package; "" if it is absent."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def machine() -> Iterator[Finding]:
    """Processor and memory."""
    cpu = pathlib.Path("/proc/cpuinfo")
    text = cpu.read_text(errors="replace") if cpu.exists() else ""
    fast = [name for name in ("avx2", "avx512f", "amx_bf16") if f" {name}" in text]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("processor", f"{platform.machine()}, {cores} cores, {', '.join(fast) or 'no AVX'}")
    memory = pathlib.Path("/proc/meminfo")
    if memory.exists():
        lines = dict(line.split(":") for line in memory.read_text().splitlines())
        free, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
        low = "less than 4 GiB are free" if free < LEAST_MEMORY else ""
        yield Finding(
            "memory", f"{gib(free)} of {gib(total)} free", low, "end other programs, or take a larger machine"
        )


def devices(timeout: float) -> Iterator[Finding]:
    """The devices that JAX finds, asked in a process of its own: a chip in use by another one can block it."""
    try:
        done = subprocess.run([sys.executable, "-c", DEVICES], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        problem = f"JAX found no devices within {timeout:g} s; another process may hold the chips"
        yield Finding("jax", "no answer", problem, "end that process, or export JAX_PLATFORMS=cpu")
        return
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        remedy = "pip install --force-reinstall jax jaxlib"
        if "JAX_PLATFORMS" in GIVEN:
            remedy = "unset JAX_PLATFORMS"
        yield Finding("jax", "no devices", reason, remedy)
        return
    found = json.loads(done.stdout.splitlines()[-1])
    kinds = ", ".join(f"{kind} ({name})" for name, kind in found["kinds"])
    backends = {name for name, _ in found["kinds"]}
    yield Finding("jax", f"{found['count']} x {kinds}")
    chosen = GIVEN.get("JAX_PLATFORMS", "")
    from sora_jax.cli.main import tpu_chips

    for name, there, extra in (("gpu", nvidia_gpus(), "cuda"), ("tpu", tpu_chips(), "tpu")):
        if there and name not in backends and "cpu" not in chosen.split(",")[:1]:
            yield Finding(
                name, f"{there} on this machine", "JAX does not use them", f"pip install 'sora_jax[{extra}]'"
            )


def nvidia_gpus() -> int:
    """Number of NVIDIA GPUs that the kernel's driver shows."""
    return len(list(pathlib.Path("/proc/driver/nvidia/gpus").glob("*")))


def files() -> Iterator[Finding]:
    """The compilation cache, the models of the package, the encoder of videos."""
    from sora_jax.worlds.shipped import MODELS

    folder = cache_folder()
    if not folder:
        yield Finding("compiled programs", f"not kept: {VARIABLE}=none")
    elif "://" in folder:
        yield Finding("compiled programs", folder)
    else:
        yield local_cache(pathlib.Path(folder))
    for name, model in MODELS.items():
        size = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
        yield Finding(f"model {name}", f"{size / 2**20:.0f} MiB at {model}" if size else "not in this package")
    yield video_encoder()


def local_cache(folder: pathlib.Path) -> Finding:
    """The compilation cache on this machine's disk."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    text = f"{gib(size)} of at most {gib(MAX_BYTES)} at {folder}, {gib(free)} free"
    wrong = "is no folder" if not there.is_dir() else "" if os.access(there, os.W_OK) else "can't be written"
    if wrong:
        return Finding("compiled programs", text, f"{there} {wrong}", f"export {VARIABLE}=FOLDER, another one")
    low = f"less than {gib(LEAST_DISK)} are free" if free < LEAST_DISK else ""
    return Finding("compiled programs", text, low, f"delete files, or export {VARIABLE}=FOLDER on another disk")


def video_encoder() -> Finding:
    """The library that writes mp4 files."""
    try:
        from sora_jax.data.media.write import encoder

        return Finding("video encoder", encoder())
    except (ImportError, ValueError) as error:
        return Finding("video encoder", "absent", f"no H.264: {error}", "pip install --force-reinstall av")


def environment() -> Iterator[Finding]:
    """Variables that change what JAX and this package do."""
    steering = {name: value for name, value in sorted(GIVEN.items()) if name.startswith(STEERING)}
    for name, value in steering.items():
        yield Finding(name, value)
    if not steering:
        yield Finding("variables", "none that changes JAX")


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


COMMAND = Command(
    "this installation -> versions, devices, caches, and what is wrong with them",
    {
        "Hardware": (
            Flag("timeout", "Longest time for JAX to find its devices, in seconds.", float, 60.0, min=1.0),
        )
    },
    run,
    about="Below each problem stands what to type. The exit code is 2 if there is a problem.",
    examples=("",),
)
