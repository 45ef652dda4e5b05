#!/usr/bin/env python3
"""Runs on Cloud TPU VMs through queued resources: create, wait, setup, ssh, run, logs, stop, delete.

    python launch/tpu_vm.py create --name=first --zone=us-east5-a --chip=v5p --topology=4x4x4
    python launch/tpu_vm.py wait|setup ...     the same options
    python launch/tpu_vm.py run ... -- sora-jax train ...

All actions take the same options, so that one edits the line of `create`. `run` starts the run in the background:
it continues when this computer is switched off.
"""

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import pod
from pod import InputError, Pod

GCLOUD = ["gcloud", "compute", "tpus"]
FOLDER = "sora_jax"  # in the home folder of each VM
FAILED = ("FAILED", "SUSPENDING", "SUSPENDED")


class Machines:
    """The TPU VMs of a queued resource."""

    def __init__(self, arguments: Sequence[str], *extra: tuple[str, dict]):
        parser = pod.Parser("Cloud TPU VMs through queued resources.")
        parser.add_argument("--name", type=pod.name, required=True)
        parser.add_argument("--zone", required=True)
        parser.add_argument("--project", default="", help="Google Cloud project (default: that of gcloud).")
        parser.add_pod()
        for option, values in extra:
            parser.add_argument(option, **values)
        self.options, self.command = parser.read(arguments)
        self.pod: Pod = pod.pod_of(self.options)
        if not self.pod.fact("vm", ""):
            raise InputError(f"--chip={self.pod.chip}: is not available as TPU VMs; launch/gke.py runs on it")
        slices = self.pod.slices
        name = self.options.name
        # The names that gcloud gives them.
        self.nodes = [name] if slices == 1 else [f"{name}-{number}" for number in range(slices)]
        self.where = [f"--zone={self.options.zone}"]
        if self.options.project:
            self.where.append(f"--project={self.options.project}")

    @property
    def processes(self) -> int:
        """The number of processes, one per VM; a small slice is one VM."""
        hosts = 1 if self.pod.chips <= self.pod.fact("single") else self.pod.hosts
        return hosts * self.pod.slices

    def gcloud(self, *words: str):
        pod.run([*GCLOUD, *words, *self.where], dry=self.options.dry_run)

    def ssh(self, script: str, *, worker: str = "all", nodes: list[str] | None = None):
        """Run a script on the VMs of every slice."""
        for node in nodes or self.nodes:
            self.gcloud("tpu-vm", "ssh", node, f"--worker={worker}", f"--command={script}")


def create(arguments: Sequence[str]):
    flag = {"action": "store_true"}
    machines = Machines(
        arguments,
        ("--spot", flag | {"help": "Cheaper VMs that can be preempted."}),
        ("--reserved", flag | {"help": "VMs of a reservation."}),
        ("--valid-until", {"default": "", "help": "Time after which the request is withdrawn, for example 6h."}),
    )
    options, asked = machines.options, machines.pod
    nodes = [f"--node-id={options.name}"]
    if asked.slices > 1:
        nodes = [f"--node-count={asked.slices}", f"--node-prefix={options.name}"]
    chosen = [f"--{name}" for name in ("spot", "reserved") if getattr(options, name)]
    if options.valid_until:
        chosen.append(f"--valid-until-duration={options.valid_until}")
    machines.gcloud(
        "queued-resources",
        "create",
        options.name,
        *nodes,
        f"--accelerator-type={asked.accelerator()}",
        f"--runtime-version={asked.fact('runtime')}",
        *chosen,
    )


def wait(arguments: Sequence[str]):
    """Wait until the VMs are ready, and print each change of state."""
    machines = Machines(
        arguments,
        ("--every", {"type": pod.positive, "default": 30, "help": "Seconds between queries (default: 30)."}),
    )
    name = machines.options.name
    command = [*GCLOUD, "queued-resources", "describe", name, "--format=value(state.state)", *machines.where]
    if machines.options.dry_run:
        return pod.run(command, dry=True)
    pod.check_installed("gcloud")
    before = ""
    while before != "ACTIVE":
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        if asked.returncode:
            lines = asked.stderr.strip().splitlines() or ["it gives no reason"]
            raise InputError(f"gcloud can't describe {name}: {lines[-1]}")
        state = asked.stdout.strip()
        if state != before:
            print(f"{name}: {state}", flush=True)
        if state in FAILED:
            raise InputError(
                f"{name} is {state}: run `tpu_vm.py delete`, then create it again; `gcloud ... describe` says why"
            )
        before = state
        if before != "ACTIVE":
            time.sleep(machines.options.every)


def setup(arguments: Sequence[str]):
    """Copy the last commit of this checkout to every VM, and install it there."""
    machines = Machines(arguments)
    dry = machines.options.dry_run
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{'/tmp' if dry else folder}/sora_jax.tar.gz"
        pod.run(["git", "-C", str(pod.ROOT), "archive", "--format=tar.gz", f"--output={archive}", "HEAD"], dry=dry)
        for node in machines.nodes:
            machines.gcloud("tpu-vm", "scp", archive, f"{node}:sora_jax.tar.gz", "--worker=all")
    # The Python of the VMs is older than 3.11; uv brings a newer one.
    machines.ssh(
        f"set -e; rm -rf {FOLDER}; mkdir {FOLDER}; tar -xzf sora_jax.tar.gz -C {FOLDER}; cd {FOLDER}; "
        "python3 -m pip install --quiet --user uv; export PATH=$HOME/.local/bin:$PATH; "
        "uv venv --quiet --python=3.12 .venv; "
        "uv pip install --quiet --python=.venv --constraint=constraints.txt --editable='.[tpu]'; "
        ".venv/bin/sora-jax --version"
    )


def ssh(arguments: Sequence[str]):
    """Run a command on every VM and wait for it, for example to mount a disk."""
    machines = Machines(arguments)
    machines.ssh(shlex.join(pod.command_of(machines.command)))


def run(arguments: Sequence[str]):
    """Start a run in the background on every VM; each VM restarts its process when it dies or hangs."""
    # After a restart, finding the others can take more than one try.
    help_text = "Restarts of a VM's process without a new checkpoint (default: 10)."
    restarts = {"type": pod.at_least(0), "default": 10, "help": help_text}
    machines = Machines(arguments, ("--restarts", restarts))
    variables = machines.pod.environment(machines.processes)
    command = pod.supervised(pod.command_of(machines.command), machines.options.restarts)
    line = pod.with_environment(variables, command)
    machines.ssh(
        f"cd {FOLDER} || exit 1; export PATH=$PWD/.venv/bin:$PATH; "
        'if [ -f run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null; then echo a run is already on; exit 1; fi; '
        f"nohup {line} > run.log 2>&1 < /dev/null & echo $! > run.pid"
    )


def logs(arguments: Sequence[str]):
    """Follow the output of the first VM."""
    machines = Machines(arguments)
    machines.ssh(f"tail --lines=+1 --follow=name {FOLDER}/run.log", worker="0", nodes=machines.nodes[:1])


def stop(arguments: Sequence[str]):
    Machines(arguments).ssh(f'kill "$(cat {FOLDER}/run.pid)"')


def delete(arguments: Sequence[str]):
    """Delete the VMs and their disks."""
    machines = Machines(arguments)
    machines.gcloud("queued-resources", "delete", machines.options.name, "--force", "--quiet")


ACTIONS = {action.__name__: action for action in (create, wait, setup, ssh, run, logs, stop, delete)}

if __name__ == "__main__":
    sys.exit(pod.main(lambda arguments: pod.act(ACTIONS, arguments)))
