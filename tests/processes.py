"""Two processes of four devices each, over real sockets; as a program: verbs of the command line, one by one."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
PROCESSES, DEVICES = 2, 4  # of each process
LIMIT = 600  # seconds; many times what a quiet machine takes


def environment(process: int, port: int, seconds: int) -> dict[str, str]:
    """What process number `process` is started with."""
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(DEVICES),
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",  # see conftest.py
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("SORA_JAX_COMPILED", ""),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "SORA_JAX_COORDINATOR": f"localhost:{port}",
        "SORA_JAX_NUM_PROCESSES": str(PROCESSES),
        "SORA_JAX_PROCESS_ID": str(process),
        "SORA_JAX_NUM_DEVICES": str(PROCESSES * DEVICES),
        "SORA_JAX_START_SECONDS": str(seconds),
    }


def run(*verbs: list[str], others=None, count: int = PROCESSES, seconds: int = 120, **changes: str):
    """Run verbs in all processes at once; (exit code, what it printed) of each.

    Args:
      others: verbs of the processes after the first, if they are to differ.
      count: how many are started.
      seconds: for which they wait for each other.
      changes: to the environment of the processes after the first.
    """
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    started = []
    for process in range(count):
        asked = list(verbs) if process == 0 or others is None else others
        started.append(
            subprocess.Popen(
                [sys.executable, __file__, json.dumps(asked)],
                env=environment(process, port, seconds) | (changes if process else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        return [(process.communicate(timeout=LIMIT)[0], process.returncode)[::-1] for process in started]
    finally:
        for process in started:
            process.kill()


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in pathlib.Path(f"/proc/{pid}/status").read_text()


def main() -> int:
    from sora_jax.cli.main import main as sora_jax

    for arguments in json.loads(sys.argv[1]):
        if code := sora_jax(arguments):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
