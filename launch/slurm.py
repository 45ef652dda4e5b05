#!/usr/bin/env python3
"""Starts a run on GPUs of a Slurm cluster: writes the batch script and submits it.

python launch/slurm.py submit --name=first --chip=h100 --hosts=4 --time=24:00:00 -- sora-jax train ...
python launch/slurm.py status|cancel --name=first
"""

import re
import shlex
import sys
from collections.abc import Sequence

import pod
from pod import InputError, Pod

GRACE = 120  # seconds from SIGTERM to the time limit or SIGKILL, to save a checkpoint


def script(
    asked: Pod, name: str, command: list[str], *, time: str, partition: str, account: str, logs: str, restarts: int
) -> str:
    """The batch script of a run: one process per host, with all of its GPUs.

    Args:
      restarts: how often the job is requeued when it fails, hangs, or reaches its time limit; it continues from
        its last checkpoint. An error of input ends it for good.
    """
    lines = {
        "job-name": name,
        "nodes": asked.hosts,
        "ntasks-per-node": 1,
        "gpus-per-node": asked.chips,
        "time": time,
        "output": f"{logs}/%x-%j.log",
        "signal": f"TERM@{GRACE}",
        "partition": partition,
        "account": account,
        "open-mode": "append",  # a requeued job keeps its log
    }
    directives = [f"#SBATCH --{key}={value}" for key, value in lines.items() if value]
    exports = [f"export {key}={shlex.quote(value)}" for key, value in asked.environment(asked.hosts).items()]
    # One failed process stops the others, which would wait for it.
    start = f"srun --kill-on-bad-exit=1 --label {shlex.join(pod.supervised(command))}"
    requeue = [
        f"{start} || code=$?",
        f'if [ "$code" -ne 0 ] && [ "$code" -ne {InputError.code} ] '
        f'&& [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then',
        '  exec scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
    queue = f"#SBATCH --{'requeue' if restarts else 'no-requeue'}"
    parts = ["#!/bin/bash", *directives, "#SBATCH --exclusive", queue, "set -eu", *exports, "code=0", *requeue]
    return "\n".join(parts) + "\n"


def submit(arguments: Sequence[str]):
    parser = pod.Parser("Submit a run to Slurm.")
    parser.add_argument("--name", type=pod.name, required=True)
    parser.add_pod()
    parser.add_argument("--time", type=duration, required=True, help="Time limit, for example 24:00:00.")
    parser.add_argument("--partition", default="", help="Partition of the cluster.")
    parser.add_argument("--account", default="", help="Account to charge.")
    parser.add_argument("--logs", default=".", help="Existing folder for the logs (default: .).")
    parser.add_argument(
        "--restarts", type=pod.at_least(0), default=0, help="Times that the job is requeued (default: 0)."
    )
    options, command = parser.read(arguments)
    asked = pod.pod_of(options)
    if asked.tpu:
        raise InputError(f"--chip={asked.chip}: Slurm has GPUs; launch/gke.py and launch/tpu_vm.py run on TPUs")
    text = script(
        asked,
        options.name,
        pod.command_of(command),
        time=options.time,
        partition=options.partition,
        account=options.account,
        logs=options.logs,
        restarts=options.restarts,
    )
    pod.run(["sbatch"], dry=options.dry_run, text=text)


def duration(text: str) -> str:
    if not re.fullmatch(r"(\d+-)?\d+:\d\d(:\d\d)?|\d+", text):
        raise pod.argparse.ArgumentTypeError(f"{text!r}: write hours:minutes:seconds or days-hours:minutes")
    return text


def by_name(*command: str):
    """An action on a submitted run."""

    def act(arguments: Sequence[str]):
        parser = pod.Parser("Ask Slurm about one run, or cancel it.")
        parser.add_argument("--name", type=pod.name, required=True)
        options, _ = parser.read(arguments)
        pod.run([*command, f"--name={options.name}"], dry=options.dry_run)

    return act


ACTIONS = {"submit": submit, "status": by_name("squeue", "--me"), "cancel": by_name("scancel", "--me")}

if __name__ == "__main__":
    sys.exit(pod.main(lambda arguments: pod.act(ACTIONS, arguments)))
