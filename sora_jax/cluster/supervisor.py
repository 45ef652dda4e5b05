"""Supervises the processes of a run: starts and watches them, stops all when one fails, and restarts all.

A process that trains writes a heartbeat at every update (`sora_jax.cluster.heartbeat`). When one dies or hangs,
all are stopped and start again from the last good checkpoint: this is the same code as any other start.

`launch/local.py` supervises all processes of a machine. On a cluster every host has one process and one
supervisor; either the cluster or the supervisor restarts it:

    python -m sora_jax.cluster.supervisor [--restarts=N] [--hang=SECONDS] -- sora-jax train ...
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from sora_jax.cluster.heartbeat import PREEMPTED, TRAINING, VARIABLE, Beat, read_beat
from sora_jax.cluster.lifeline import Lifeline, die_with_parent
from sora_jax.core.errors import EXIT_RETRY, InputError, print_error

FAILURE_GRACE = 2  # seconds from SIGTERM to SIGKILL after a failure: the others can't save without the failed one
POLL = 0.2  # seconds
TAIL = 15  # lines of a failed process's log to show
FIRST_PAUSE, LONGEST_PAUSE = 1, 60  # seconds before a restart, doubled after each one without progress
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

Commands = Sequence[tuple[dict[str, str], list[str]]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Limits of a supervisor.

    Attributes:
      restarts: number of restarts without progress; a new checkpoint resets the count.
      hang: seconds without an update after which a process counts as hanging.
      start: seconds without a heartbeat, before the second update (both are compiled) and in work between updates.
      grace: seconds from SIGTERM to SIGKILL, to save and end.
    """

    restarts: int = 3
    hang: float = 600
    start: float = 3600
    grace: float = 110  # less than the 120 that GKE and Slurm are asked for

    @staticmethod
    def add_to(parser: argparse.ArgumentParser, **defaults):
        """Add an option for each limit."""
        texts = {
            "restarts": "Restarts of all processes without a new checkpoint in between",
            "hang": "Seconds without an update after which a process counts as hanging",
            "start": "Seconds without a heartbeat before the second update",
            "grace": "Seconds to save and end after SIGTERM",
        }
        for field in dataclasses.fields(Rules):
            kind: Any = field.type
            default = defaults.get(field.name, field.default)
            text = f"{texts[field.name]} (default: {default})."
            parser.add_argument(f"--{field.name}", type=non_negative(kind), default=default, help=text)

    @staticmethod
    def of(options: argparse.Namespace) -> "Rules":
        return Rules(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Rules)})


def non_negative(kind: type) -> Callable[[str], float]:
    """A parser of numbers of this type, 0 or more."""

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if value < 0:
            raise argparse.ArgumentTypeError(f"{text!r}: a number is needed, 0 or more")
        return value

    return read


@dataclasses.dataclass(frozen=True)
class Failure:
    """The first process that failed: its number, its exit code (None: it hangs), and a description."""

    number: int
    code: int | None
    how: str


class Run:
    """One start of all processes; a context manager that leaves none of them behind.

    Args:
      commands: (additional environment, command) of each process.
      logs: a folder; process n appends to process-n.log, and the log of process 0 is copied to the terminal. None:
        the processes write where this one does.
    """

    def __init__(self, commands: Commands, logs: pathlib.Path | None, rules: Rules):
        self.rules = rules
        self.logs = [logs / f"process-{number}.log" for number in range(len(commands))] if logs else []
        self.processes: list[subprocess.Popen] = []
        self._folder = tempfile.TemporaryDirectory(prefix="heartbeat-")
        self._files = [pathlib.Path(self._folder.name) / str(number) for number in range(len(commands))]
        self._beats: list[Beat | None] = [None] * len(commands)
        self._last_beat = [time.monotonic()] * len(commands)
        self._lifeline = Lifeline(rules.grace)
        tie, ends = die_with_parent(), []
        for number, (told, command) in enumerate(commands):
            with contextlib.ExitStack() as stack:
                output = None
                if logs:
                    output = stack.enter_context(open_log(self.logs[number]))
                    ends.append(output.tell())
                # In a session of its own, so that its children are stopped with it and Ctrl-C reaches it once.
                process = subprocess.Popen(
                    command,
                    env=os.environ | told | {"PYTHONUNBUFFERED": "1", VARIABLE: str(self._files[number])},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT if logs else None,
                    start_new_session=True,
                    preexec_fn=tie,
                )
            self._lifeline.add(process.pid)
            self.processes.append(process)
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, args=(self.logs[0], ends[0])) if logs else None
        if self._follower:
            self._follower.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop(FAILURE_GRACE)
        self._lifeline.close()
        self._ended.set()
        if self._follower:
            self._follower.join()
        self._folder.cleanup()

    @property
    def start(self) -> int | None:
        """Updates done when this run started; None if no process has started to train."""
        return max((beat.start for beat in self._beats if beat), default=None)

    @property
    def step(self) -> int:
        """Updates done."""
        return max((beat.step for beat in self._beats if beat), default=0)

    @property
    def preempted(self) -> bool:
        return any(beat and beat.doing == PREEMPTED for beat in self._beats)

    def wait(self, stopping: threading.Event) -> Failure | None:
        """Wait for the end; returns the first process that fails or hangs, None if all succeed.

        Args:
          stopping: set when this supervisor was told to stop, so that all processes have to.
        """
        while True:
            if stopping.is_set():
                self.stop(self.rules.grace)
            codes = [process.poll() for process in self.processes]
            self._listen()
            failed = [(number, code) for number, code in enumerate(codes) if code]
            if failed:
                # A process killed by a signal is mostly a consequence; one that exited by itself is the cause.
                number, code = min(failed, key=lambda pair: pair[1] < 0)
                return Failure(number, code, f"ended with {exit_name(code)}")
            if None not in codes:
                return None
            for number, code in enumerate(codes):
                if code is None and (limit := self._limit(number)) < time.monotonic() - self._last_beat[number]:
                    return Failure(number, None, f"gave no heartbeat for {limit:g} s")
            time.sleep(POLL)

    def stop(self, grace: float):
        """SIGTERM to each running process and its children, after `grace` seconds SIGKILL."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                if process.poll() is None or number == signal.SIGKILL:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
            deadline = time.monotonic() + grace
            while any(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
                time.sleep(POLL)

    def _listen(self):
        for number, file in enumerate(self._files):
            if (beat := read_beat(file)) != self._beats[number]:
                self._beats[number], self._last_beat[number] = beat, time.monotonic()

    def _limit(self, number: int) -> float:
        """Seconds that the process may take to its next heartbeat; unlimited before the first."""
        beat = self._beats[number]
        if beat is None:
            return float("inf")
        return self.rules.hang if beat.doing == TRAINING else self.rules.start

    def _follow(self, log: pathlib.Path, start: int):
        """Copy new lines of a log to the terminal until the run has ended."""
        with log.open(errors="replace") as file:
            file.seek(start)
            while True:
                ended = self._ended.is_set()
                while text := file.read(65536):
                    sys.stdout.write(text)
                    sys.stdout.flush()
                if ended:
                    return
                time.sleep(POLL)


def open_log(path: pathlib.Path):
    """The log of a process, open for appending; a line with the time separates the starts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    if file.tell():
        file.write(f"--- restarted, {time.strftime('%Y-%m-%d %H:%M:%S %z')} ---\n".encode())
        file.flush()
    return file


def exit_name(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name


def supervise(commands: Callable[[], Commands], logs: pathlib.Path | None, rules: Rules) -> int:
    """Run to the end, through failures that a restart may mend.

    SIGTERM, SIGHUP and Ctrl-C stop the processes, which save and end, and then the supervisor.

    Args:
      commands: called before every start, for ports that are free then.
    Returns: the exit code: 0 when the work is done; 75 when it was stopped and is to be started again; else that
      of the first process that failed, 128 + the signal that killed it, or 1 for a hang.
    """
    stopping = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopping.set()) for number in STOP_SIGNALS}
    # A shell lets its background jobs ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tries, best = 0, -1  # restarts without progress, and the latest step that a run started from
    try:
        while True:
            with Run(commands(), logs, rules) as run:
                try:
                    failure = run.wait(stopping)
                except KeyboardInterrupt:
                    run.stop(rules.grace)
                    raise
            if failure is None and not run.preempted:
                return 0
            reached = run.step if failure is None else -1 if run.start is None else run.start
            tries, best = (0, reached) if reached > best else (tries + 1, best)
            code, words = describe_end(run, failure)
            if stopping.is_set() or not can_restart(run, failure) or tries >= rules.restarts:
                tell(words)
                return code
            pause = min(FIRST_PAUSE * 2**tries, LONGEST_PAUSE) if failure else 0
            left = rules.restarts - tries
            tell(f"{words}; all restart in {pause} s, {left} more times while there is no new checkpoint")
            if stopping.wait(pause):
                return EXIT_RETRY
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe_end(run: Run, failure: Failure | None) -> tuple[int, str]:
    """(exit code, description) of a run that did not finish; prints the last lines of the failed process's log."""
    if failure is None:
        return EXIT_RETRY, f"stopped, and saved after step {run.step}"
    if failure.number and run.logs:  # the log of process 0 is on the terminal
        lines = run.logs[failure.number].read_text(errors="replace").splitlines()[-TAIL:]
        print("\n".join(f"process {failure.number}: {line}" for line in lines), file=sys.stderr)
    where = f" at step {run.step}" if run.start is not None else ""
    words = f"process {failure.number} {failure.how}{where}, the others are stopped"
    if run.logs:
        words += f"; {run.logs[failure.number]}"
    code = failure.code
    return (1 if code is None else code if code > 0 else 128 - code), words


def can_restart(run: Run, failure: Failure | None) -> bool:
    """Whether another start may get further: not after an error of input, nor if no process started to train."""
    if failure is None or failure.code is None or failure.code == EXIT_RETRY:
        return True
    return failure.code != InputError.code and (failure.code < 0 or run.start is not None)


def tell(words: str):
    print_error(pathlib.Path(sys.argv[0]).name, words)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are an InputError of one line."""

    def error(self, message: str):
        raise InputError(message)


def main(arguments: Sequence[str]) -> int:
    """Supervise this host's process of a run."""
    parser = Parser(prog="python -m sora_jax.cluster.supervisor", description=main.__doc__, allow_abbrev=False)
    Rules.add_to(parser)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    try:
        options = parser.parse_args(arguments[:at])
        command = list(arguments[at + 1 :])
        if not command or not shutil.which(command[0]):
            raise InputError(f"{command[0]}: no such program here" if command else "no command; it comes after --")
        return supervise(lambda: [({}, command)], None, Rules.of(options))
    except InputError as error:
        print_error("supervisor.py", error)
        return error.code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
