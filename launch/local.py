#!/usr/bin/env python3
"""Several processes of one run on this machine, each with its log; when one dies, the others are stopped.

python launch/local.py --processes=2 --devices=8 --platform=cpu -- sora-jax train --config=configs/shapes.py ...
"""

import contextlib
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import pod
from pod import InputError

GRACE = 30  # seconds to end in after SIGTERM, where all are asked to: a checkpoint may be in the writing
BROKEN = 5  # seconds, where one has failed: the others can do nothing more together
POLL = 0.2  # seconds
TAIL = 15  # lines of a dead process's log to show


def variables(process: int, processes: int, devices: int, platform: str, port: int) -> dict[str, str]:
    """What process number `process` is told by its environment."""
    each = devices // processes
    told = {
        "SORA_JAX_COORDINATOR": f"localhost:{port}",
        "SORA_JAX_NUM_PROCESSES": str(processes),
        "SORA_JAX_PROCESS_ID": str(process),
        "SORA_JAX_NUM_DEVICES": str(devices),
    }
    if platform == "cpu":
        # With more devices than cores, a second program in the queue can take the threads that a collective of the
        # first waits for.
        return told | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(each),
            "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        }
    mine = range(process * each, (process + 1) * each)
    return told | {"JAX_PLATFORMS": "cuda,cpu", "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, mine))}


class Run:
    """Processes that live and die together; a context manager that leaves none behind.

    Args:
      commands: of each process, its environment beside this one's, and its command.
      logs: a folder; process number n writes process-n.log, and the first one to the terminal as well.
    """

    def __init__(self, commands: Sequence[tuple[dict[str, str], list[str]]], logs: pathlib.Path):
        self.logs = [logs / f"process-{number}.log" for number in range(len(commands))]
        self.processes: list[subprocess.Popen] = []
        logs.mkdir(parents=True, exist_ok=True)
        for (told, command), log in zip(commands, self.logs, strict=True):
            with log.open("wb") as file:
                # A group of its own: what it starts is stopped with it, and Ctrl-C reaches it once, from here.
                process = subprocess.Popen(
                    command,
                    env=os.environ | told | {"PYTHONUNBUFFERED": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.processes.append(process)
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, args=(self.logs[0],))
        self._follower.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop(BROKEN)
        self._ended.set()
        self._follower.join()

    def wait(self, taken: threading.Event) -> tuple[int, int] | None:
        """(number, exit code) of the first process that fails, None when all have ended well.

        Args:
          taken: that the machine is taken back, so that all are to end.
        """
        while True:
            if taken.is_set():
                self.stop(GRACE)
            codes = [process.poll() for process in self.processes]
            failed = [(number, code) for number, code in enumerate(codes) if code]
            if failed:
                # Killed by a signal is most often the consequence of another one's own exit.
                return min(failed, key=lambda pair: pair[1] < 0)
            if None not in codes:
                return None
            time.sleep(POLL)

    def stop(self, grace: float):
        """End what still runs: SIGTERM to each process, after `grace` seconds SIGKILL to all that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                if process.poll() is None or number == signal.SIGKILL:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
            deadline = time.monotonic() + grace
            while any(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
                time.sleep(POLL)

    def _follow(self, log: pathlib.Path):
        """Copy what is added to a log to the terminal, until the run has ended."""
        with log.open(errors="replace") as file:
            while True:
                ended = self._ended.is_set()
                while text := file.read(65536):
                    sys.stdout.write(text)
                    sys.stdout.flush()
                if ended:
                    return
                time.sleep(POLL)


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def launch(arguments: Sequence[str]) -> int:
    parser = pod.Parser("Several processes of one run on this machine.")
    parser.add_argument("--processes", type=pod.positive, required=True)
    parser.add_argument("--devices", type=pod.positive, required=True, help="of all processes together")
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cuda", help="cpu: as many fake devices")
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("logs"), help="folder for a log of each")
    options, command = parser.read(arguments)
    command = pod.command_of(command)
    if options.devices % options.processes:
        fits = [n for n in range(1, options.devices + 1) if options.devices % n == 0]
        raise InputError(
            f"--processes={options.processes}: does not divide {options.devices} devices; "
            f"{', '.join(map(str, fits))} do"
        )
    port = free_port()
    told = [
        variables(process, options.processes, options.devices, options.platform, port)
        for process in range(options.processes)
    ]
    if options.dry_run:
        for number, its in enumerate(told):
            log = shlex.quote(str(options.logs / f"process-{number}.log"))
            print(f"{pod.with_environment(its, command)} > {log} 2>&1 &")
        print("wait")
        return 0
    pod.needed(command[0])
    return supervise([(its, command) for its in told], options.logs)


def supervise(commands, logs: pathlib.Path) -> int:
    """Run to the end, once; the exit code. SIGTERM, from a scheduler that takes the machine back, is handed on."""
    taken = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: taken.set())
    # A shell has what it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Run(commands, logs) as run:
            try:
                failed = run.wait(taken)
            except KeyboardInterrupt:
                run.stop(GRACE)
                raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if failed is None:
        return 0
    number, code = failed
    if number:  # the first one's is on the terminal
        lines = run.logs[number].read_text(errors="replace").splitlines()[-TAIL:]
        print("\n".join(f"process {number}: {line}" for line in lines), file=sys.stderr)
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    print(
        f"local.py: process {number} ended with {how}, the others are stopped; {run.logs[number]}", file=sys.stderr
    )
    return code if code > 0 else 128 - code


if __name__ == "__main__":
    sys.exit(pod.main(launch))
