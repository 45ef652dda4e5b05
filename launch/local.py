#!/usr/bin/env python3
"""Starts several processes of one run on this machine, each with a log; when one dies, all restart.

python launch/local.py --processes=2 --devices=8 --platform=cpu -- sora-jax train --config=configs/shapes.py ...
"""

import pathlib
import shlex
import socket
import sys
from collections.abc import Sequence

import pod
from pod import InputError

from sora_jax.cluster.supervisor import Rules, supervise


def variables(process: int, processes: int, devices: int, platform: str, port: int) -> dict[str, str]:
    """The environment variables of process number `process`."""
    each = devices // processes
    values = {
        "SORA_JAX_COORDINATOR": f"localhost:{port}",
        "SORA_JAX_NUM_PROCESSES": str(processes),
        "SORA_JAX_PROCESS_ID": str(process),
        "SORA_JAX_NUM_DEVICES": str(devices),
    }
    if platform == "cpu":
        # With more devices than cores, a second queued program can take the threads that a collective of the first
        # one waits for.
        return values | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(each),
            "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        }
    mine = range(process * each, (process + 1) * each)
    return values | {"JAX_PLATFORMS": "cuda,cpu", "JAX_LOCAL_DEVICE_IDS": ",".join(map(str, mine))}


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def launch(arguments: Sequence[str]) -> int:
    parser = pod.Parser("Start several processes of one run on this machine.")
    parser.add_argument("--processes", type=pod.positive, required=True, help="Number of processes.")
    parser.add_argument(
        "--devices", type=pod.positive, required=True, help="Number of devices of all processes together."
    )
    parser.add_argument(
        "--platform", choices=("cpu", "cuda"), default="cuda", help="cpu: fake devices (default: cuda)."
    )
    parser.add_argument(
        "--logs",
        type=pathlib.Path,
        default=pathlib.Path("logs"),
        help="Folder for a log of each process (default: logs).",
    )
    Rules.add_to(parser)
    options, command = parser.read(arguments)
    command = pod.command_of(command)
    if options.devices % options.processes:
        fits = [n for n in range(1, options.devices + 1) if options.devices % n == 0]
        raise InputError(
            f"--processes={options.processes}: {options.devices} devices can't be divided by it; "
            f"use one of {', '.join(map(str, fits))}"
        )

    def commands():
        port = free_port()
        return [
            (variables(process, options.processes, options.devices, options.platform, port), command)
            for process in range(options.processes)
        ]

    if options.dry_run:
        for number, (variables_of_one, _) in enumerate(commands()):
            log = shlex.quote(str(options.logs / f"process-{number}.log"))
            print(f"{pod.with_environment(variables_of_one, command)} >> {log} 2>&1 &")
        print("wait")
        return 0
    pod.check_installed(command[0])
    return supervise(commands, options.logs, Rules.of(options))


if __name__ == "__main__":
    sys.exit(pod.main(launch))
