#!/usr/bin/env python3
"""Cloud TPU VMs through queued resources: create, wait, setup, ssh, run, logs, stop, delete.

    python launch/tpu_vm.py create --name=first --zone=us-east5-a --chip=v5p --topology=4x4x4
    python launch/tpu_vm.py wait|setup ...     the same options
    python launch/tpu_vm.py run ... -- sora-jax train ...

Every action but `create` finds the machines by --name, --zone, --slices and the chips, so a line is edited, not
rewritten. `run` leaves the run behind on the machines: it goes on when this computer is closed.
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
FOLDER = "sora_jax"  # in the home folder of each machine
FAILED = ("FAILED", "SUSPENDING", "SUSPENDED")


class Machines:
    """The slices of a queued resource, and how gcloud is asked about them."""

    def __init__(self, arguments: Sequence[str], *extra: tuple[str, dict]):
        parser = pod.Parser("Cloud TPU VMs through queued resources.")
        parser.add_argument("--name", type=pod.name, required=True)
        parser.add_argument("--zone", required=True)
        parser.add_argument("--project", default="", help="default: that of gcloud")
        parser.add_pod()
        for option, values in extra:
            parser.add_argument(option, **values)
        self.options, self.command = parser.read(arguments)
        self.pod: Pod = pod.pod_of(self.options)
        if not self.pod.fact("vm", ""):
            raise InputError(f"--chip={self.pod.chip}: is not on TPU VMs; launch/gke.py runs on it")
        slices = self.pod.slices
        name = self.options.name
        # As gcloud names them.
        self.nodes = [name] if slices == 1 else [f"{name}-{number}" for number in range(slices)]
        self.where = [f"--zone={self.options.zone}"]
        if self.options.project:
            self.where.append(f"--project={self.options.project}")

    @property
    def processes(self) -> int:
        """One a machine: a TPU VM of a small slice holds all of its chips."""
        hosts = 1 if self.pod.chips <= self.pod.fact("single") else self.pod.hosts
        return hosts * self.pod.slices

    def gcloud(self, *words: str):
        pod.run([*GCLOUD, *words, *self.where], dry=self.options.dry_run)

    def ssh(self, script: str, *, worker: str = "all", nodes: list[str] | None = None):
        """Run a script on machines of every slice."""
        for node in nodes or self.nodes:
            self.gcloud("tpu-vm", "ssh", node, f"--worker={worker}", f"--command={script}")


def create(arguments: Sequence[str]):
    flag = {"action": "store_true"}
    machines = Machines(
        arguments,
        ("--spot", flag | {"help": "cheap, and can be taken back"}),
        ("--reserved", flag | {"help": "from a reservation"}),
        ("--valid-until", {"default": "", "help": "give up after this long, for example 6h"}),
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
    """Wait until the machines are there, and say each state on the way."""
    machines = Machines(
        arguments, ("--every", {"type": pod.positive, "default": 30, "help": "seconds between looks"})
    )
    name = machines.options.name
    command = [*GCLOUD, "queued-resources", "describe", name, "--format=value(state.state)", *machines.where]
    if machines.options.dry_run:
        return pod.run(command, dry=True)
    pod.needed("gcloud")
    before = ""
    while before != "ACTIVE":
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        if asked.returncode:
            lines = asked.stderr.strip().splitlines() or ["no reason given"]
            raise InputError(f"gcloud can't describe {name}: {lines[-1]}")
        state = asked.stdout.strip()
        if state != before:
            print(f"{name}: {state}", flush=True)
        if state in FAILED:
            raise InputError(
                f"{name} is {state}: `tpu_vm.py delete` it, then create it anew; gcloud's describe says why"
            )
        before = state
        if before != "ACTIVE":
            time.sleep(machines.options.every)


def setup(arguments: Sequence[str]):
    """Copy the last commit of this checkout to every machine, and install it there."""
    machines = Machines(arguments)
    dry = machines.options.dry_run
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{'/tmp' if dry else folder}/sora_jax.tar.gz"
        pod.run(["git", "-C", str(pod.ROOT), "archive", "--format=tar.gz", f"--output={archive}", "HEAD"], dry=dry)
        for node in machines.nodes:
            machines.gcloud("tpu-vm", "scp", archive, f"{node}:sora_jax.tar.gz", "--worker=all")
    # The machines' own Python is older than 3.11; uv brings one.
    machines.ssh(
        f"set -e; rm -rf {FOLDER}; mkdir {FOLDER}; tar -xzf sora_jax.tar.gz -C {FOLDER}; cd {FOLDER}; "
        "python3 -m pip install --quiet --user uv; export PATH=$HOME/.local/bin:$PATH; "
        "uv venv --quiet --python=3.12 .venv; "
        "uv pip install --quiet --python=.venv --constraint=constraints.txt --editable='.[tpu]'; "
        ".venv/bin/sora-jax --version"
    )


def ssh(arguments: Sequence[str]):
    """Run any command on every machine and wait for it: to mount a disk, or to look."""
    machines = Machines(arguments)
    machines.ssh(shlex.join(pod.command_of(machines.command)))


def run(arguments: Sequence[str]):
    """Start a run on every machine, and leave it there; a machine begins again when its process dies or hangs."""
    # Meeting the others anew can take more than one try.
    restarts = {"type": pod.at_least(0), "default": 10, "help": "while no new checkpoint comes of it"}
    machines = Machines(arguments, ("--restarts", restarts))
    told = machines.pod.environment(machines.processes)
    command = pod.supervised(pod.command_of(machines.command), machines.options.restarts)
    line = pod.with_environment(told, command)
    machines.ssh(
        f"cd {FOLDER} || exit 1; export PATH=$PWD/.venv/bin:$PATH; "
        'if [ -f run.pid ] && kill -0 "$(cat run.pid)" 2>/dev/null; then echo a run is on already; exit 1; fi; '
        f"nohup {line} > run.log 2>&1 < /dev/null & echo $! > run.pid"
    )


def logs(arguments: Sequence[str]):
    """Follow what the first machine prints."""
    machines = Machines(arguments)
    machines.ssh(f"tail --lines=+1 --follow=name {FOLDER}/run.log", worker="0", nodes=machines.nodes[:1])


def stop(arguments: Sequence[str]):
    Machines(arguments).ssh(f'kill "$(cat {FOLDER}/run.pid)"')


def delete(arguments: Sequence[str]):
    """Give the machines back; what is on their own disks is lost."""
    machines = Machines(arguments)
    machines.gcloud("queued-resources", "delete", machines.options.name, "--force", "--quiet")


ACTIONS = {action.__name__: action for action in (create, wait, setup, ssh, run, logs, stop, delete)}

if __name__ == "__main__":
    sys.exit(pod.main(lambda arguments: pod.act(ACTIONS, arguments)))
