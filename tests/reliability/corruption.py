"""Break a run's checkpoints, fill its disk, and compare what it comes to with the same run left alone, bit by bit.

    python tests/reliability/corruption.py --corruptions=20 --disks=10 --out=corruption.md

A tiny transformer trains to step 8 and saves every second one. A corruption damages a file of step 6 at random:
truncated, zeroed in part, a bit flipped, or missing; in a quarter of them one of step 4 as well. Only files that
a restore needs are taken: damage to the others changes nothing. A full disk is a tmpfs with room for a random part
of the run. Either time the run is started again, and its final state must equal that of the run left alone to the
last bit. Needs root, to mount the disks.
"""

import argparse
import contextlib
import functools
import io
import pathlib
import random
import re
import shutil
import sys
import tempfile
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import conftest  # noqa: F401, the devices
import jax
import numpy as np
from tiny_run import CONFIG, SETTINGS, Disk, compiled_once, write_data

from sora_jax.checkpoint.meta import load_meta
from sora_jax.checkpoint.orbax_errors import BrokenCheckpoint
from sora_jax.checkpoint.restore import abstract_on_mesh, read_state
from sora_jax.checkpoint.workdir import steps_in
from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.train import loop
from sora_jax.train.objectives.registry import make_objective
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import abstract_state
from sora_jax.train.step import make_step

STEPS, EVERY = 8, 2
FLAGS = (f"--config.train.steps={STEPS}", f"--config.train.save_every={EVERY}", "--config.train.keep=9")


def truncate(content: bytearray, draw) -> bytearray:
    return content[: draw.randrange(len(content))]


def zero(content: bytearray, draw) -> bytearray:
    """Up to 4 KiB, a block of a disk; not where all are zero."""
    size = min(4096, len(content))
    while True:
        start = draw.randrange(len(content) - size + 1)
        if any(content[start : start + size]):
            return content[:start] + bytes(size) + content[start + size :]


def flip(content: bytearray, draw) -> bytearray:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return content


def remove(content: bytearray, draw) -> None:
    return None


DAMAGES = {"truncated": truncate, "zeroed": zero, "bit flipped": flip, "missing": remove}


@functools.lru_cache
def one_step(settings):
    """The step of all runs, which have the same settings: traced and compiled once."""
    optimizer = make_optimizer(settings.optimizer, settings.train.steps)
    return make_step(make_objective(settings), optimizer, settings)


class Home:
    """Data, and a run that nobody disturbs."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        (folder / "config.py").write_text(CONFIG)
        write_data(folder / "latents", "latents", SETTINGS.autoencoder)
        with jax.set_mesh(make_mesh(MeshSettings())):
            optimizer = make_optimizer(SETTINGS.optimizer, STEPS)
            self.abstract = abstract_on_mesh(abstract_state(make_objective(SETTINGS), optimizer))
        self.train(folder / "alone")
        self.alone = self.state(folder / "alone", STEPS)
        self.read = {step: self.files_read(step) for step in (4, 6)}

    def train(self, workdir: pathlib.Path) -> tuple[int, list[str]]:
        """Exit code, and the lines that were told."""
        told = io.StringIO()
        data = f"--config.data.path={self.folder}/latents"
        with contextlib.redirect_stderr(told):
            code = main(["train", f"--config={self.folder}/config.py", data, *FLAGS, f"--workdir={workdir}"])
        return code, told.getvalue().splitlines()

    def state(self, workdir: pathlib.Path, step: int):
        """The arrays of a checkpoint, as numpy; nothing of it is verified here."""
        return jax.device_get(read_state(workdir / "checkpoints", step, self.abstract))

    def is_same(self, workdir: pathlib.Path) -> bool:
        ended = self.state(workdir, STEPS)
        return jax.tree.all(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), ended, self.alone))

    def files_read(self, step: int) -> list[pathlib.Path]:
        """The files of a step without which it can't be restored, below its folder."""
        folder, aside = self.folder / "alone/checkpoints" / str(step), self.folder / "aside"
        found = []
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            shutil.move(file, aside)
            try:
                load_meta(folder.parent, step)
                self.state(self.folder / "alone", step)
            except BrokenCheckpoint:
                found.append(file.relative_to(folder))
            finally:
                shutil.move(aside, file)
        return found


def corruption(home: Home, number: int, draw: random.Random) -> dict:
    """Damage copies of the run that nobody disturbs, as it was at step 6, and let it go on."""
    workdir = home.folder / f"corrupted-{number}"
    shutil.copytree(home.folder / "alone", workdir)
    folder = workdir / "checkpoints"
    shutil.rmtree(folder / str(STEPS))
    kind = list(DAMAGES)[number % len(DAMAGES)]
    steps = [6, 4] if draw.random() < 0.25 else [6]
    files = [damage(home, folder / str(step), kind, draw) for step in steps]
    code, lines = home.train(workdir)
    note = " ".join(line for line in lines if "is broken, " in line)
    taken = re.search(r"step (\d+) of", " ".join(lines))
    found = re.search(r"is broken, (.*?); set aside", note)
    assert steps_in(folder)[-1] == STEPS, lines
    row = {
        "damage": kind,
        "files": ", ".join(files),
        "found": found[1][:70] if found else "no: not what is read",
        "step taken": taken[1] if taken else "none",
        "same": code == 0 and home.is_same(workdir),
    }
    shutil.rmtree(workdir)
    return row


def damage(home: Home, step: pathlib.Path, kind: str, draw: random.Random) -> str:
    """Damage a random file that is read, large ones more often; returns its name."""
    names = home.read[int(step.name)]
    name = draw.choices(names, [1000 + (step / name).stat().st_size for name in names])[0]
    content = DAMAGES[kind](bytearray((step / name).read_bytes()), draw)
    (step / name).unlink()
    if content is not None:
        (step / name).write_bytes(content)
    return f"{step.name}/{name.parent}/{name.name[:8]}"


def full_disk(home: Home, number: int, draw: random.Random) -> dict:
    """Train on a disk that is too small, let it grow, and go on."""
    whole = sum(path.stat().st_size for path in (home.folder / "alone").rglob("*") if path.is_file())
    room = int(whole * draw.uniform(0.15, 0.95))
    disk = Disk(home.folder / f"disk-{number}", room)
    try:
        workdir = disk.path / "run"
        code, lines = home.train(workdir)
        told = [line for line in lines if "can't be written" in line]
        kept = steps_in(workdir / "checkpoints")
        intact = all(same_state(home, workdir, step) for step in kept)
        disk.grow(4 * whole)
        again, lines = home.train(workdir)
        taken = re.search(r"step (\d+) of", " ".join(lines))
        return {
            "room": f"{room / whole:.0%}",
            "told": f"exit {code}, {len(told)} line",
            "whole steps": f"{', '.join(map(str, kept)) or 'none'}{'' if intact else ', NOT INTACT'}",
            "step taken": taken[1] if taken else "none",
            "same": code == 2 and len(told) == 1 and intact and again == 0 and home.is_same(workdir),
        }
    finally:
        disk.close()


def same_state(home: Home, workdir: pathlib.Path, step: int) -> bool:
    found, alone = (home.state(run, step) for run in (workdir, home.folder / "alone"))
    return jax.tree.all(jax.tree.map(np.array_equal, found, alone))


def table(rows: list[dict]) -> str:
    names = list(rows[0])
    cells = [[str(row[name]) if row[name] is not True else "yes" for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [names, ["---"] * len(names), *cells]) + "\n"


def run(folder: pathlib.Path, corruptions: int, disks: int, seed: int) -> tuple[list[dict], list[dict]]:
    """What became of each, printed as it comes."""
    draw = random.Random(seed)
    results: tuple[list[dict], list[dict]] = ([], [])
    with (
        compiled_once(folder / "compiled"),
        mock.patch.object(loop, "make_step", lambda objective, optimizer, settings: one_step(settings)),
    ):
        home = Home(folder)
        for rows, trial, count in zip(results, (corruption, full_disk), (corruptions, disks), strict=True):
            for number in range(count):
                rows.append(trial(home, number, draw))
                print(*rows[-1].values(), sep="  ", flush=True)
    return results


def from_command_line() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corruptions", type=int, default=20)
    parser.add_argument("--disks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="a Markdown file of the tables")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = run(pathlib.Path(folder), asked.corruptions, asked.disks, asked.seed)
    text = "\n".join(table(rows) for rows in results if rows)
    print(text)
    if asked.out:
        asked.out.write_text(text)
    bad = [row for rows in results for row in rows if row["same"] is not True]
    print(f"{sum(map(len, results)) - len(bad)} of {sum(map(len, results))} end as the run left alone")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(from_command_line())
