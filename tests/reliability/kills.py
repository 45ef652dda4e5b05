"""Kill a training run, again and again, and compare what it comes to with the same run left alone, bit by bit.

    python tests/reliability/kills.py --kills=40 --out=kills.md

Two processes train a tiny transformer under `launch/local.py`. SIGKILL, SIGTERM and SIGSTOP go to one of them or
to both, at random moments, a third of them while a checkpoint is in the writing. For each run of several kills the
final state and the loss of every step must equal those of a run that nobody disturbed.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import bucket_servers

from sora_jax.checkpoint.workdir import COMMIT, orbax_path
from sora_jax.cluster.heartbeat import TRAINING, Beat, read_beat
from sora_jax.core.storage import as_path, in_bucket, remove_folder

CONFIG = """
import tiny
from sora_jax.config.load import to_config

def get_config():
    return to_config(tiny.change(
        tiny.SETTINGS,
        text={"vocabulary": 400},
        train={"save_every": 5, "log_every": 1},
    ))
"""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
HANG = 15  # seconds; a step takes a hundredth of it
LIMIT = 180  # seconds in which a kill must have been followed by another update


@dataclasses.dataclass(frozen=True)
class Kill:
    """What was done to a run, and what it cost."""

    signal: str
    target: str  # one, all
    moment: str  # between saves, in a save
    step: int  # updates done when it came
    start: int  # updates done when training began again
    seconds: float  # until the next update after it

    @property
    def lost(self) -> int:
        return max(0, self.step - self.start)


class Home:
    """Data, a config and the uninterrupted run, in a folder; the workdirs below `base`, which may be a bucket."""

    def __init__(self, folder: pathlib.Path, steps: int, base: pathlib.Path | None = None):
        from tiny import SETTINGS
        from tiny_run import write_data

        self.folder, self.steps, self.base = folder, steps, base or folder
        (folder / "config.py").write_text(CONFIG)
        write_data(folder / "data", "latents", SETTINGS.autoencoder)
        began = time.monotonic()
        with Training(self, "alone") as alone:
            alone.finish()
        self.seconds = time.monotonic() - began
        self.state, self.losses = alone.state(), alone.losses()


class Training:
    """A run under the supervisor; a context manager that leaves no process behind."""

    def __init__(self, home: Home, name: str):
        self.home, self.workdir = home, home.base / name
        self.signs = home.folder / f"{name}-signs"
        self.signs.mkdir()
        flags = [f"--config={home.folder}/config.py", f"--config.train.steps={home.steps}", "--config.mesh.data=2"]
        flags += [f"--config.data.path={home.folder}/data", f"--workdir={self.workdir}"]
        told = {
            "PYTHONPATH": os.pathsep.join(sys.path[:2]),
            "TMPDIR": str(self.signs),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            "JAX_COMPILATION_CACHE_DIR": str(home.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [
            sys.executable,
            "-c",
            "import sys; from sora_jax.cli.main import main; sys.exit(main())",
            "train",
        ]
        supervised = [sys.executable, ROOT / "launch/local.py", "--processes=2", "--devices=2", "--platform=cpu"]
        supervised += [f"--hang={HANG}", "--restarts=20", f"--logs={home.folder / name}-logs"]
        with (home.folder / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*supervised, "--", *command, *flags], env=os.environ | told, stdout=log, stderr=log
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def beats(self) -> list[Beat]:
        """What the processes that there are said last."""
        found = []
        for folder in self.signs.glob("heartbeat-*"):
            found += [beat for number in "01" if (beat := read_beat(folder / number))]
        return found

    def wait(self, ready) -> list[Beat]:
        """The beats when they are as wished for. Raises: RuntimeError if that never comes."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.failed()
            if len(beats := self.beats()) == 2 and ready(beats):
                return beats
            time.sleep(0.002)
        raise RuntimeError(f"{self.workdir.name}: nothing came in {LIMIT} s: {self.beats()}")

    def kill(self, number: signal.Signals, target: str, moment: str, step: int, rng: random.Random) -> Kill:
        """Send the signal once `step` updates are done, and wait for the first update after it."""

        def due(beats):
            return all(beat.doing == TRAINING and beat.step >= max(step, beat.start + 1) for beat in beats)

        def saving(beats):
            if not due(beats):
                return False
            folder = self.workdir / "checkpoints"
            if in_bucket(folder):
                return any(not (step / COMMIT).exists() for step in folder.glob("[0-9]*"))
            return any(folder.glob("*.orbax-checkpoint-tmp*"))

        beats = self.wait(saving if moment == "in a save" else due)
        time.sleep(rng.uniform(0, 0.05))
        beats = self.beats() or beats
        began, done = time.monotonic(), max(beat.step for beat in beats)
        for beat in beats if target == "all" else [rng.choice(beats)]:
            os.kill(beat.pid, number)
        pids = {beat.pid for beat in beats}
        after = self.wait(
            lambda beats: (
                all(beat.pid not in pids and beat.doing == TRAINING for beat in beats)
                and any(beat.step > beat.start for beat in beats)
            )
        )
        return Kill(number.name, target, moment, done, after[0].start, time.monotonic() - began)

    def finish(self):
        if self.process.wait(LIMIT * 5):
            self.failed()

    def failed(self):
        """Say what the supervisor said last."""
        last = (self.home.folder / f"{self.workdir.name}.log").read_text(errors="replace").splitlines()[-40:]
        raise RuntimeError("\n".join([f"{self.workdir.name} ended with {self.process.returncode}", *last]))

    def state(self) -> dict:
        """The last checkpoint, name -> array."""
        import jax
        import numpy as np
        import orbax.checkpoint as ocp

        folder = orbax_path(self.workdir.resolve() / "checkpoints" / str(self.home.steps) / "state")
        with ocp.PyTreeCheckpointer() as checkpointer:
            there = checkpointer.metadata(folder).item_metadata.tree
            whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), there)
            restored = checkpointer.restore(folder, restore_args=whole)
        return {jax.tree_util.keystr(path): value for path, value in jax.tree.leaves_with_path(restored)}

    def losses(self) -> list[float]:
        return [json.loads(line)["loss"] for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]


def same(run: Training, home: Home) -> bool:
    """Whether final state and losses equal those of the run that was left alone, to the last bit."""
    state = run.state()
    if state.keys() != home.state.keys() or run.losses() != home.losses:
        return False
    return all(value.tobytes() == home.state[name].tobytes() for name, value in state.items())


def plan(kills: int, rng: random.Random) -> list[tuple[signal.Signals, str, str]]:
    """Kinds of kills, each as often as the others, in random order; every third is in a save."""
    kinds = [
        (number, target, "in a save" if part == 2 else "between saves")
        for part in range(3)
        for target in ("one", "all")
        for number in SIGNALS
    ]
    # Any three in a row have all signals, the first three one in a save.
    kinds = [kinds[(13 * n) % len(kinds)] for n in range(kills)]
    rng.shuffle(kinds)
    return kinds


def torture(
    folder: pathlib.Path,
    kills: int,
    per_run: int,
    steps: int,
    seed: int,
    minutes: float = 1e9,
    tell=print,
    base: pathlib.Path | None = None,
):
    """(kills, how many runs, how many of them came to the same state, seconds of the run left alone).

    Args:
      minutes: after which nothing more is killed.
      base: where the workdirs are, if not in `folder`.
    """
    until = time.monotonic() + minutes * 60
    rng = random.Random(seed)
    home = Home(folder, steps, base)
    tell(f"left alone: {home.seconds:.0f} s")
    todo, done, runs, equal = plan(kills, rng), [], 0, 0
    while todo and time.monotonic() < until:
        now, todo = todo[:per_run], todo[per_run:]
        part = (steps - 20) // len(now)
        with Training(home, f"run-{runs}") as run:
            for n, (number, target, moment) in enumerate(now):
                if time.monotonic() > until:
                    break
                step = rng.randrange(1 + n * part, (n + 1) * part + 1)
                done.append(run.kill(number, target, moment, step, rng))
                tell(f"run {runs}: {done[-1]}")
            run.finish()
        runs += 1
        equal += (alike := same(run, home))
        tell(f"run {runs - 1}: {'the same' if alike else 'ANOTHER'} final state")
        remove_folder(run.workdir)
    return done, runs, equal, home.seconds


def table(kills: list[Kill]) -> str:
    """A row for each kind of kill, medians and (most), as Markdown."""
    rows = [
        "| signal | to | when | kills | updates lost | seconds to the next update |",
        "|---|---|---|---|---|---|",
    ]
    of = collections.defaultdict(list)
    for kill in kills:
        of[kill.signal, kill.target, kill.moment].append(kill)
    for kind, some in [*sorted(of.items()), (("all", "", ""), kills)]:
        lost, seconds = [kill.lost for kill in some], [kill.seconds for kill in some]
        numbers = [f"{statistics.median(lost):g} ({max(lost)})"]
        numbers += [f"{statistics.median(seconds):.1f} ({max(seconds):.1f})"]
        rows.append(f"| {' | '.join([*kind, str(len(some)), *numbers])} |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--per-run", type=int, default=10, help="kills of one run")
    parser.add_argument("--steps", type=int, default=60, help="updates of a run")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which nothing more is killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="a file for the table")
    parser.add_argument("--storage", choices=("disk", "gs", "s3"), default="disk", help="where the workdirs are")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        base = None
        if options.storage != "disk":
            address = stack.enter_context(bucket_servers.SERVERS[options.storage]())
            os.environ.update(bucket_servers.environment(options.storage, address))
            base = as_path(bucket_servers.new_bucket(options.storage, address))
        kills, runs, equal, alone = torture(
            pathlib.Path(folder),
            options.kills,
            options.per_run,
            options.steps,
            options.seed,
            options.minutes,
            lambda *words: print(*words, flush=True),
            base,
        )
    text = (
        f"{len(kills)} kills of {runs} runs of {options.steps} updates ({alone:.0f} s left alone), "
        f"{(time.monotonic() - began) / 60:.0f} minutes: {equal} of {runs} runs ended bit for bit "
        f"as the run left alone.\n\n{table(kills)}\n"
    )
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0 if equal == runs else 1


if __name__ == "__main__":
    sys.exit(main())
