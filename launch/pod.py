"""Shared by the launchers: chips and topologies, environment variables of the processes, running commands.

As a program it prints the environment variables for processes that are started by hand.
"""

import argparse
import dataclasses
import math
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
# From a checkout, with nothing installed.
sys.path.insert(0, str(ROOT))

from sora_jax.cluster.compiler_flags import compiler_flags  # noqa: E402
from sora_jax.core.errors import InputError, did_you_mean, print_error  # noqa: E402

CHIPS = tomllib.loads((ROOT / "launch/chips.toml").read_text())
FLAGS_VARIABLE = {"tpu": "LIBTPU_INIT_ARGS", "cuda": "XLA_FLAGS"}  # holds the compiler flags
INSTALL = {
    "gcloud": "https://cloud.google.com/sdk/docs/install",
    "kubectl": "gcloud components install kubectl, or https://kubernetes.io/docs/tasks/tools",
    "xpk": "pip install xpk",
    "sbatch": "it comes with Slurm: run this on a login node of the cluster",
    "squeue": "it comes with Slurm: run this on a login node of the cluster",
    "scancel": "it comes with Slurm: run this on a login node of the cluster",
    "git": "apt install git",
}


@dataclasses.dataclass(frozen=True)
class Pod:
    """Chips of one kind: TPU slices of a topology, or GPU hosts.

    Raises: InputError for an unknown chip or topology.
    """

    chip: str
    topology: str = ""  # of a TPU slice: 4x4, 4x4x4
    slices: int = 1
    gpu_hosts: int = 1

    def __post_init__(self):
        if self.chip not in CHIPS:
            raise InputError(f"--chip={self.chip}: no such chip, {did_you_mean(self.chip, CHIPS)}")
        if self.tpu:
            if self.gpu_hosts > 1:
                raise InputError(
                    f"--hosts: leave it out; the hosts of a {self.chip} slice follow from its --topology"
                )
            if not exists(self.fact("topologies"), self.fact("largest", 0), self.topology):
                known = ", ".join(self.fact("topologies"))
                if largest := self.fact("largest", 0):
                    known += f", and AxBxC of multiples of 4, A <= B <= C, up to {largest} chips"
                raise InputError(f"--topology={self.topology}: no {self.chip} slice has it; known: {known}")
        elif self.topology or self.slices > 1:
            raise InputError(f"--topology and --slices are for TPUs; {self.chip}s come as --hosts of {self.chips}")

    def fact(self, name: str, *default):
        values = CHIPS[self.chip]
        return values.get(name, *default) if default else values[name]

    @property
    def tpu(self) -> bool:
        return self.fact("platform") == "tpu"

    @property
    def chips(self) -> int:
        """The number of chips of a slice, or of a GPU host."""
        return math.prod(int(side) for side in self.topology.split("x")) if self.tpu else self.fact("host")

    @property
    def hosts(self) -> int:
        """The number of hosts of a slice, or of GPU hosts."""
        return math.ceil(self.chips / self.fact("host")) if self.tpu else self.gpu_hosts

    @property
    def devices(self) -> int:
        """The number of JAX devices of all hosts and slices."""
        return self.chips * self.fact("devices") * (self.slices if self.tpu else self.gpu_hosts)

    def accelerator(self) -> str:
        """The accelerator type of a slice, which counts chips or cores: v5p-128."""
        return f"{self.fact('vm')}-{self.chips * self.fact('count')}"

    def environment(self, processes: int) -> dict[str, str]:
        """Variables of every process: number of processes and devices, and the chip's compiler flags."""
        return {
            "JAX_PLATFORMS": f"{self.fact('platform')},cpu",
            "SORA_JAX_NUM_PROCESSES": str(processes),
            "SORA_JAX_NUM_DEVICES": str(self.devices),
            FLAGS_VARIABLE[self.fact("platform")]: " ".join(compiler_flags(self.chip, self.slices)),
        }


def exists(known: list[str], largest: int, topology: str) -> bool:
    """Whether there are slices of that topology: a known one, or a large torus."""
    if topology in known:
        return True
    if not largest or not re.fullmatch(r"\d+x\d+x\d+", topology):
        return False
    sides = [int(side) for side in topology.split("x")]
    return sides == sorted(sides) and all(side and side % 4 == 0 for side in sides) and math.prod(sides) <= largest


class Parser(argparse.ArgumentParser):
    """Options, then `--`, then the command that every process runs; errors are an InputError of one line."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False)
        self.add_argument("--dry-run", action="store_true", help="Print the commands instead of running them.")

    def error(self, message: str):
        raise InputError(message)

    def add_pod(self):
        """Add the options that choose the chips."""
        self.add_argument("--chip", required=True, help=f"Kind of chip: {', '.join(CHIPS)}.")
        self.add_argument("--topology", default="", help="Topology of a TPU slice, for example 4x4x4.")
        self.add_argument("--slices", type=positive, default=1, help="Number of TPU slices (default: 1).")
        self.add_argument("--hosts", type=positive, default=1, help="Number of GPU hosts (default: 1).")

    def read(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The options, and the command after `--`."""
        arguments = list(arguments)
        at = arguments.index("--") if "--" in arguments else len(arguments)
        known = {name for action in self._actions for name in action.option_strings}
        for word in arguments[:at]:
            if word.startswith("--") and word.partition("=")[0] not in known:
                raise InputError(f"{word}: no such option, {did_you_mean(word.partition('=')[0], known)}")
        options, left = self.parse_known_args(arguments[:at])
        if left:
            raise InputError(f"{left[0]!r}: not an option; the command of the run comes after --")
        return options, arguments[at + 1 :]


def pod_of(options: argparse.Namespace) -> Pod:
    return Pod(options.chip, options.topology, options.slices, options.hosts)


def at_least(least: int) -> Callable[[str], int]:
    """A parser of whole numbers."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number is needed, {least} or more")
        return int(text)

    return read


positive = at_least(1)


def name(text: str) -> str:
    """A name that Google Cloud, Kubernetes and Slurm all accept."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(f"{text!r}: use at most 40 of a-z, 0-9 and -, and begin with a letter")
    return text


def command_of(command: list[str]) -> list[str]:
    """The command of a run. Raises: InputError if there is none."""
    if not command:
        raise InputError(
            "no command; it comes after --, for example: -- sora-jax train --config=configs/t2v_1_3b.py"
        )
    return command


def supervised(command: list[str], restarts: int = 0) -> list[str]:
    """The command under a supervisor on each host, which ends it when it hangs and restarts it.

    Args:
      restarts: by the supervisor; 0 where the cluster restarts the run.
    """
    return ["python", "-m", "sora_jax.cluster.supervisor", f"--restarts={restarts}", "--", *command]


def with_environment(variables: dict[str, str], command: list[str]) -> str:
    """A line for a shell: `env NAME=VALUE ... command`."""
    return shlex.join(["env", *(f"{key}={value}" for key, value in variables.items()), *command])


def run(command: list[str], *, dry: bool, text: str = "") -> None:
    """Run a program with `text` on its standard input; in a dry run print both.

    Raises: InputError if the program is absent or fails.
    """
    if dry:
        print(shlex.join(command) + (f" <<'EOF'\n{text.rstrip()}\nEOF" if text else ""))
        return
    check_installed(command[0])
    done = subprocess.run(command, input=text or None, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"{shlex.join(command[:4])} ...: ended with exit code {done.returncode}; its output is above"
        )


def act(actions: Mapping[str, Callable], arguments: Sequence[str]):
    """Run the action that the first argument names with the other arguments."""
    if not arguments or arguments[0] not in actions:
        unknown = f"{arguments[0]}: no such action, {did_you_mean(arguments[0], actions)}" if arguments else ""
        raise InputError(f"{unknown or 'no action'}; one of {', '.join(actions)}")
    return actions[arguments[0]](arguments[1:])


def check_installed(program: str):
    """Raise InputError, with the way to install it, for a program that is absent."""
    if not shutil.which(program):
        raise InputError(
            f"{program}: no such program here; {INSTALL.get(program, 'is it installed, and on PATH?')}"
        )


def main(launcher) -> int:
    """Run a launcher; returns the exit code: 0, or 2 for an error of input, printed in one line."""
    try:
        return launcher(sys.argv[1:]) or 0
    except InputError as error:
        print_error(pathlib.Path(sys.argv[0]).name, error)
        return error.code
    except KeyboardInterrupt:
        return 130


def exports(arguments: Sequence[str]):
    """Print the variables of a run for a shell: `eval "$(python launch/pod.py --chip=v5p --topology=2x2x1)"`."""
    parser = Parser("Print the environment variables of processes on these chips, as lines for a shell.")
    parser.add_pod()
    options, _ = parser.read(arguments)
    pod = pod_of(options)
    for variable, value in pod.environment(pod.hosts * pod.slices).items():
        print(f"export {variable}={shlex.quote(value)}")


if __name__ == "__main__":
    sys.exit(main(exports))
