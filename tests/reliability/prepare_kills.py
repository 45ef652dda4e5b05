"""`prepare`, killed with SIGKILL at random moments and started again: is the data set the uninterrupted one?

    python tests/reliability/prepare_kills.py --kills=20
    python tests/reliability/prepare_kills.py --kills=6 --processes=2 --autoencoder
    python tests/reliability/prepare_kills.py --kills=6 --storage=gs

Half of the moments are uniform in time, the others within a few milliseconds of a random change in the folder,
so that the short steps at the end are hit as well. Of two processes one is killed, or both. A data set that is
finished before it is killed again is compared with the uninterrupted one, and the next is begun, until all kills
are done. Exit code 1 if any file differs, or a shard that was complete has been written again.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import bucket_servers
import jax
import processes
import tiny
from rich.console import Console
from rich.table import Table

from sora_jax.checkpoint.model_folder import save_model
from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.core.storage import as_path, in_bucket
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import init_params
from sora_jax.worlds.shapes.renderer import World, write_world

CONFIG = """
import tiny
from sora_jax.config.load import to_config

def get_config():
    return to_config(tiny.change(tiny.SETTINGS, text={"vocabulary": 600}, data={
        "sizes": ("48x48", "32"), "frames": (17, 1), "validation": 0.2}))
"""


class Preparation:
    """One start of `prepare`, in one process or more."""

    def __init__(self, arguments: list[str], out: pathlib.Path, count: int, log: pathlib.Path):
        with socket.create_server(("localhost", 0)) as probe:
            port = probe.getsockname()[1]
        self.out, self.started = out, time.monotonic()
        self.processes = []
        for number in range(count):
            told = processes.environment(number, port, 120)
            if count == 1:
                told = {name: value for name, value in told.items() if not name.startswith("SORA_JAX_")}
            with log.open("ab") as file:
                command = [
                    sys.executable,
                    processes.__file__,
                    processes.json.dumps([[*arguments, f"--out={out}"]]),
                ]
                self.processes.append(subprocess.Popen(command, env=told, stdout=file, stderr=file))

    def files(self) -> dict[str, int]:
        """Names below the folder, with their inodes; 0 in a bucket."""
        if in_bucket(self.out):  # objects have no inodes
            return {path.relative_to(self.out).as_posix(): 0 for path in self.out.rglob("*")}
        found = {}
        for folder, _, names in os.walk(self.out):
            for name in names:
                path = pathlib.Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    found[path.relative_to(self.out).as_posix()] = path.stat().st_ino
        return found

    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def kill(self, which: list[int]):
        for number in which:
            self.processes[number].kill()
        time.sleep(0.3 if len(which) < len(self.processes) else 0)
        for process in self.processes:  # as whoever launched them does
            process.send_signal(signal.SIGKILL)
            process.wait()

    def wait(self):
        codes = [process.wait() for process in self.processes]
        if any(codes):
            raise SystemExit(f"prepare ended with {codes}; see its log")


def contents(out: pathlib.Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def stage(files: dict[str, int]) -> str:
    """How far a preparation has come, by what lies in its folder."""
    if "about.json" in files:
        return "cleaning up"
    if any(not name.startswith(".unfinished") for name in files):
        return "finishing"
    done = sum(name.startswith(".unfinished") and name.endswith(".json") for name in files) - 1
    if any(name.startswith((".unfinished/train", ".unfinished/validation", ".unfinished/.")) for name in files):
        return f"{max(done, 0)} shards complete"
    return "starting"


def shards_of(files: dict[str, int]) -> set[int]:
    """Inodes of the shards that are complete."""
    described = {name.removesuffix(".json") for name in files if name.endswith(".json")}
    return {
        inode for name, inode in files.items() if name in described or name.startswith("clips-")
    }  # in the making, and named


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--autoencoder", action="store_true", help="latents, not pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--storage", choices=("disk", "gs", "s3"), default="disk", help="where the data sets are written"
    )
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = out = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.storage != "disk":
            address = stack.enter_context(bucket_servers.SERVERS[options.storage]())
            os.environ.update(bucket_servers.environment(options.storage, address))
            out = as_path(bucket_servers.new_bucket(options.storage, address))
        return torture(folder, out, options)


def torture(folder: pathlib.Path, base: pathlib.Path, options) -> int:
    """Prepare data sets of the videos in `folder`, below `base`, and kill; returns the exit code."""
    draw = random.Random(options.seed)
    (folder / "config.py").write_text(CONFIG)
    write_world(folder / "videos", options.videos, World(1, sizes=("64x64", "96x64"), lengths=(17, 27, 1)))
    arguments = ["prepare", f"--config={folder / 'config.py'}", f"--videos={folder / 'videos'}"]
    if options.autoencoder:
        with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
            settings = tiny.SETTINGS.autoencoder
            params = jax.jit(lambda: init_params(Autoencoder, settings, jax.random.key(0)))()
            save_model(folder / "autoencoder", Autoencoder, settings, params)
        arguments.append(f"--autoencoder={folder / 'autoencoder'}")
    log = folder / "log"
    whole = Preparation(arguments, base / "whole", 1, log)
    events = collections.OrderedDict()
    while whole.running():
        events.setdefault(frozenset(whole.files()), time.monotonic() - whole.started)
    whole.wait()
    seconds = time.monotonic() - whole.started
    expected = contents(base / "whole")
    table = Table("data set", "kills", "killed when", "complete shards written again", "files that differ")
    killed = number = faults = 0
    while killed < options.kills:
        out, stages, kept, again = base / f"killed-{number}", [], set(), 0
        while True:
            run = Preparation(arguments, out, options.processes, log)
            # At a random moment of the whole, or just after a random change; None: left to end.
            moment = draw.uniform(0.2, seconds) if draw.random() < 0.5 else None
            change = draw.randrange(1, len(events)) if moment is None else None
            jitter, seen, last = draw.uniform(0, 0.005), 0, None
            while run.running() and killed < options.kills:
                files = run.files()
                if files.keys() != last:
                    seen, last = seen + 1, files.keys()
                due = time.monotonic() - run.started > moment if change is None else seen > change
                if due:
                    time.sleep(jitter)
                    which = draw.sample(range(options.processes), draw.randint(1, options.processes))
                    run.kill(which)
                    killed += 1
                    files = run.files()
                    stages.append(stage(files))
                    kept |= shards_of(files)
                    break
            else:
                run.wait()
                break
        found = contents(out)
        final = set(run.files().values())
        again = len(kept - final)
        differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        faults += bool(differ) + bool(again)
        counted = collections.Counter(stages)
        where = ", ".join(name + (f" ({times} times)" if times > 1 else "") for name, times in counted.items())
        table.add_row(
            str(number), str(len(stages)), where, str(again), f"{len(differ)}, {differ[0]}" if differ else "none"
        )
        number += 1
    console = Console(width=115)
    console.print(table)
    shards = sum(".array_record-" in name for name in expected)
    console.print(
        f"{killed} kills of {options.processes} process(es), {number} data sets of {len(expected)} files, "
        f"{shards} of them shards; an uninterrupted run took {seconds:.1f} s. Data sets with a fault: {faults}",
        highlight=False,
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
