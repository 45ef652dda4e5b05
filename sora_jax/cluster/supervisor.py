"""Processes that live and die together: started, watched, stopped as one fails, and started again.

A process that trains says at every update that it is alive (`sora_jax.cluster.heartbeat`). One that dies, or
says nothing
for too long, ends all of them, and all begin again from the last good checkpoint: no state of a process is worth
saving, so there is one way to go on, and it is tried at every start.

`launch/local.py` supervises all processes of a machine. On a cluster every host has one process and its own
supervisor, with what is left to restart either the cluster's own policy or the supervisor's:

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

from sora_jax.cluster.heartbeat import PREEMPTED, TRAINING, VARIABLE, Beat, read_beat
from sora_jax.core.errors import EXIT_RETRY, InputError

BROKEN = 2  # seconds to end in after SIGTERM, where one has failed: the others can do nothing more together
POLL = 0.2  # seconds
TAIL = 15  # lines of a dead process's log to show
FIRST_PAUSE, LONGEST_PAUSE = 1, 60  # seconds before a restart; twice as long each time that nothing was gained
BY_INPUT = 2  # the exit code of a mistake that no restart mends

Commands = Sequence[tuple[dict[str, str], list[str]]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """How patient a supervisor is.

    Attributes:
      restarts: how often all are started again with nothing gained; a later checkpoint begins the count anew.
      hang: seconds from one update to the next after which a process hangs.
      start: seconds without a sign before the second update, as both are compiled, and for what is no update.
      grace: seconds to save and end in after SIGTERM.
    """

    restarts: int = 3
    hang: float = 600
    start: float = 3600
    grace: float = 110  # less than the 120 that GKE and Slurm are asked for

    @staticmethod
    def add_to(parser: argparse.ArgumentParser, **defaults):
        """Options for them."""
        texts = {
            "restarts": "of all processes, while no new checkpoint comes of it",
            "hang": "seconds without an update",
            "start": "seconds without a sign, before the second update",
            "grace": "seconds to save and end in after SIGTERM",
        }
        for field in dataclasses.fields(Rules):
            default = defaults.get(field.name, field.default)
            text = f"{texts[field.name]}; {default}"
            parser.add_argument(f"--{field.name}", type=amount(field.type), default=default, help=text)

    @staticmethod
    def of(options: argparse.Namespace) -> "Rules":
        return Rules(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Rules)})


def amount(kind: type) -> Callable[[str], float]:
    """Reads a number of that kind, 0 or more."""

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if value < 0:
            raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
        return value

    return read


@dataclasses.dataclass(frozen=True)
class Failure:
    """The first process that failed: its number, its exit code (None: it hangs), and how."""

    number: int
    code: int | None
    how: str


class Run:
    """One try: processes that live and die together; a context manager that leaves none behind.

    Args:
      commands: of each process, its environment beside this one's, and its command.
      logs: a folder; process number n adds to process-n.log, and the first one's goes to the terminal as well.
        None: all that they print goes where this process's does.
    """

    def __init__(self, commands: Commands, logs: pathlib.Path | None, rules: Rules):
        self.rules = rules
        self.logs = [logs / f"process-{number}.log" for number in range(len(commands))] if logs else []
        self.processes: list[subprocess.Popen] = []
        self._signs = tempfile.TemporaryDirectory(prefix="heartbeat-")
        self._files = [pathlib.Path(self._signs.name) / str(number) for number in range(len(commands))]
        self._beats: list[Beat | None] = [None] * len(commands)
        self._heard = [time.monotonic()] * len(commands)
        ends = []
        for number, (told, command) in enumerate(commands):
            with contextlib.ExitStack() as stack:
                output = None
                if logs:
                    output = stack.enter_context(begun_log(self.logs[number]))
                    ends.append(output.tell())
                # A group of its own: what it starts is stopped with it, and Ctrl-C reaches it once, from here.
                process = subprocess.Popen(
                    command,
                    env=os.environ | told | {"PYTHONUNBUFFERED": "1", VARIABLE: str(self._files[number])},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT if logs else None,
                    start_new_session=True,
                )
            self.processes.append(process)
        self._ended = threading.Event()
        self._follower = threading.Thread(target=self._follow, args=(self.logs[0], ends[0])) if logs else None
        if self._follower:
            self._follower.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop(BROKEN)
        self._ended.set()
        if self._follower:
            self._follower.join()
        self._signs.cleanup()

    @property
    def start(self) -> int | None:
        """Updates that were done when this try began; None if no process has come to train."""
        return max((beat.start for beat in self._beats if beat), default=None)

    @property
    def step(self) -> int:
        """Updates done."""
        return max((beat.step for beat in self._beats if beat), default=0)

    @property
    def preempted(self) -> bool:
        return any(beat and beat.doing == PREEMPTED for beat in self._beats)

    def wait(self, taken: threading.Event) -> Failure | None:
        """The first process that fails or hangs, None when all have ended well.

        Args:
          taken: that the machine is taken back, so that all are to end.
        """
        while True:
            if taken.is_set():
                self.stop(self.rules.grace)
            codes = [process.poll() for process in self.processes]
            self._listen()
            failed = [(number, code) for number, code in enumerate(codes) if code]
            if failed:
                # Killed by a signal is most often the consequence of another one's own exit.
                number, code = min(failed, key=lambda pair: pair[1] < 0)
                return Failure(number, code, f"ended with {named(code)}")
            if None not in codes:
                return None
            for number, code in enumerate(codes):
                if code is None and (limit := self._limit(number)) < time.monotonic() - self._heard[number]:
                    return Failure(number, None, f"gave no sign for {limit:g} s")
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

    def _listen(self):
        for number, file in enumerate(self._files):
            if (beat := read_beat(file)) != self._beats[number]:
                self._beats[number], self._heard[number] = beat, time.monotonic()

    def _limit(self, number: int) -> float:
        """Seconds for which the process may be silent; without end for one that never said anything."""
        beat = self._beats[number]
        if beat is None:
            return float("inf")
        return self.rules.hang if beat.doing == TRAINING else self.rules.start

    def _follow(self, log: pathlib.Path, start: int):
        """Copy what is added to a log to the terminal, until the run has ended."""
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


def begun_log(path: pathlib.Path):
    """The log of a process, open at its end; what tries before have written stays, above a line with the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    if file.tell():
        file.write(f"--- begun again, {time.strftime('%Y-%m-%d %H:%M:%S %z')} ---\n".encode())
        file.flush()
    return file


def named(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name


def supervise(commands: Callable[[], Commands], logs: pathlib.Path | None, rules: Rules) -> int:
    """Run to the end, through failures that a restart may mend.

    SIGTERM and Ctrl-C are handed on: the processes save and end, and so does the supervisor.

    Args:
      commands: asked before every try, for ports that are free now.
    Returns: the exit code: 0 when the work is done; 75 when it was told to end before, or a process was, and is to
      be started again; else that of the first process that failed, 128 + the signal that killed it, 1 for a hang.
    """
    taken = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: taken.set())
    # A shell has what it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tries, best = 0, -1  # with nothing gained since the last start that was later than all before
    try:
        while True:
            with Run(commands(), logs, rules) as run:
                try:
                    failure = run.wait(taken)
                except KeyboardInterrupt:
                    run.stop(rules.grace)
                    raise
            if failure is None and not run.preempted:
                return 0
            gained = run.step if failure is None else -1 if run.start is None else run.start
            tries, best = (0, gained) if gained > best else (tries + 1, best)
            code, words = ended(run, failure)
            if taken.is_set() or not mendable_by_restart(run, failure) or tries >= rules.restarts:
                tell(words)
                return code
            pause = min(FIRST_PAUSE * 2**tries, LONGEST_PAUSE) if failure else 0
            left = rules.restarts - tries
            tell(f"{words}; all begin again in {pause} s, {left} times more while no checkpoint comes of it")
            if taken.wait(pause):
                return EXIT_RETRY
    finally:
        signal.signal(signal.SIGTERM, before)


def ended(run: Run, failure: Failure | None) -> tuple[int, str]:
    """The exit code of a try that did not finish, and a line on it."""
    if failure is None:
        return EXIT_RETRY, f"told to end, and saved after step {run.step}"
    if failure.number and run.logs:  # the first one's is on the terminal
        lines = run.logs[failure.number].read_text(errors="replace").splitlines()[-TAIL:]
        print("\n".join(f"process {failure.number}: {line}" for line in lines), file=sys.stderr)
    where = f" at step {run.step}" if run.start is not None else ""
    words = f"process {failure.number} {failure.how}{where}, the others are stopped"
    if run.logs:
        words += f"; {run.logs[failure.number]}"
    code = failure.code
    return (1 if code is None else code if code > 0 else 128 - code), words


def mendable_by_restart(run: Run, failure: Failure | None) -> bool:
    """Whether another try may go further: not after a mistake of input, nor if none has come to train."""
    if failure is None or failure.code is None or failure.code == EXIT_RETRY:
        return True
    return failure.code != BY_INPUT and (failure.code < 0 or run.start is not None)


def tell(words: str):
    name = pathlib.Path(sys.argv[0]).name
    print(f"{name}: {words}", file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """Mistakes are an InputError of one line."""

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
        print(f"supervisor.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
