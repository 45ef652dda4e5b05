"""The command line `sora-jax`: finds the command, reads its flags, runs it, and reports errors of input."""

import contextlib
import difflib
import importlib.util
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Sequence

from absl import flags

import sora_jax
from sora_jax.cli.commands import COMMANDS, subcommands
from sora_jax.cli.compile_cache import use_compile_cache
from sora_jax.cli.config_flags import define_config
from sora_jax.cli.flags import CACHE, CACHE_GB, NO_COMPILE_CACHE, Command
from sora_jax.cli.help import help_text, overview
from sora_jax.config.files import one_line
from sora_jax.core import local_cache
from sora_jax.core.console import Console
from sora_jax.core.errors import InputError, Terminated, did_you_mean, print_error, printable
from sora_jax.core.storage import check_bucket

PREFIX = "--"
HELP = ("--help", "-h", "--help-all")
GOOGLE, NETWORK_CARD = "0x1ae0", "0x0042"  # PCI numbers of Google, and of its one card that is no TPU


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
      arguments: of the command line, without the program; None: those of this process.
    Returns: the exit code: 0; 2 for an error of input, printed in one line; 3 if a result is below what was asked
      for; 75 if the same command should be run again; 130 if it was interrupted, 143 if it was terminated.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], HELP[0]]
    if not arguments or arguments[0] in HELP:
        show(overview())
        return 0
    if arguments[0] == "--version":
        show(f"sora_jax {sora_jax.__version__}")
        return 0
    name, rest = split_name(arguments)
    try:
        run(name, [underscored(argument) for argument in rest])
    except InputError as error:
        print_error(f"sora-jax {printable(name)}", error)
        return error.code
    except KeyboardInterrupt as error:
        word = "terminated" if isinstance(error, Terminated) else "interrupted"
        print(f"sora-jax {name}: {word}; the same command continues from what is complete", file=sys.stderr)
        return 128 + (signal.SIGTERM if word == "terminated" else signal.SIGINT)
    return 0


def split_name(arguments: list[str]) -> tuple[str, list[str]]:
    """(name of the command, such as "train" or "data verify", the other arguments)."""
    name, *rest = arguments
    if rest and any(known.startswith(f"{name} ") for known in COMMANDS) and not rest[0].startswith(PREFIX):
        return f"{name} {rest[0]}", rest[1:]
    return name, rest


def run(name: str, arguments: list[str]):
    """Run the command of this name, or print its help."""
    if subcommands(name) and set(arguments) <= {underscored(flag) for flag in HELP}:
        show(overview(name))
        return
    if name not in COMMANDS:
        raise InputError(f"{name}: no such command, {did_you_mean(name, COMMANDS)}; `sora-jax --help` lists them")
    if asked := {underscored(flag) for flag in HELP} & set(arguments):
        show(help_text(name, everything="--help_all" in asked))
        return
    command, console = COMMANDS[name], Console(stderr=True)
    values = parse(command, [f"sora-jax {name}", *arguments])
    use_local_cache(values)
    check_buckets(command, values)
    # Grain and TFDS ask absl whether the program has read its flags.
    flags.FLAGS.mark_as_parsed()
    hide_absent_tpu()
    if not (NO_COMPILE_CACHE.key in values and values[NO_COMPILE_CACHE.key].value):
        use_compile_cache()
    with terminable(command), joined(command, values, console):
        command.run(values, console)


def parse(command: Command, argv: list[str]) -> flags.FlagValues:
    """The values of a command's flags.

    Raises: InputError for a flag that is unknown, has no value or a bad one, or is required and absent.
    """
    values = flags.FlagValues()
    command.define(values)
    try:
        if command.config:
            argv = define_config(values, argv)
        left = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise InputError(
            f"--{hyphenated(error.flagname)}: no such flag, {nearest(error.flagname, command)}"
        ) from error
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise InputError(one_line(error)) from error
    if len(left) > 1:
        raise InputError(f"{left[1]!r}: flags begin with --; quote a value with blanks in it")
    command.check_required(values)
    return values


def use_local_cache(values: flags.FlagValues):
    """Keep copies of files in buckets where --cache says."""
    if CACHE.key in values and values[CACHE.key].value:
        os.environ[local_cache.VARIABLE] = values[CACHE.key].value
        os.environ[local_cache.GB_VARIABLE] = str(values[CACHE_GB.key].value)


def check_buckets(command: Command, values: flags.FlagValues):
    """Raise InputError, which names the flag, for a bucket that is not there, or can't be read from here."""
    given = {f"--{flag.name}": values[flag.key].value for flag in command.all_flags}
    if command.config:
        given["config.data.path"] = values["config"].value.data.path
    for name, value in given.items():
        for path in re.findall(r"(?:gs|s3)://[^,\s]*", str(value)):
            try:
                check_bucket(path)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error


@contextlib.contextmanager
def terminable(command: Command):
    """A context in which SIGTERM ends the command as Ctrl-C does, unless the command saves on it."""
    if command.saves or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_):
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def hide_absent_tpu():
    """Keep JAX from starting libtpu on a machine without a TPU, where libtpu only complains.

    To be called before JAX is imported. `plan` installs libtpu, to compile for TPUs that are elsewhere.
    """
    if "JAX_PLATFORMS" in os.environ or "jax" in sys.modules or not importlib.util.find_spec("libtpu"):
        return
    if tpu_chips():
        return
    plugin = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    os.environ["JAX_PLATFORMS"] = "cuda,cpu" if plugin and pathlib.Path("/dev/nvidia0").exists() else "cpu"


def tpu_chips() -> int:
    """Number of TPU chips on the PCI bus."""
    devices = pathlib.Path("/sys/bus/pci/devices").glob("*")
    found = ((device / "vendor", device / "device") for device in devices)
    names = [(vendor.read_text().strip(), device.read_text().strip()) for vendor, device in found]
    return sum(vendor == GOOGLE and device != NETWORK_CARD for vendor, device in names)


def joined(command: Command, values: flags.FlagValues, console: Console):
    """A context in which the processes of a cluster are connected, for a command that computes with them."""
    if not command.joins:
        return contextlib.nullcontext()
    from sora_jax.cluster.join import joined_processes

    return joined_processes(values.flag_values_dict(), console, handles_sigterm=command.saves)


def show(text: str):
    """Print, even to a reader that closes the pipe early, as in `sora-jax train --help | head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def nearest(flag: str, command: Command) -> str:
    """A hint to append to an unknown flag: the most similar one of the command."""
    known = [f"--{known.name}" for known in command.all_flags] + ["--config"] * command.config
    close = difflib.get_close_matches(f"--{hyphenated(flag)}", known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else "`--help-all` lists them"


def hyphenated(flag: str) -> str:
    """The name of a flag as people write it; keys of the config have underscores."""
    return flag if "." in flag else flag.replace("_", "-")


def underscored(argument: str) -> str:
    """--negative-prompt=x-y -> --negative_prompt=x-y: flags may be written either way."""
    if not argument.startswith(PREFIX):
        return argument
    flag, equals, value = argument.partition("=")
    return PREFIX + flag.removeprefix(PREFIX).replace("-", "_") + equals + value
