"""`prepare` on damaged media: each file is used or skipped with its reason, in bounded time and memory.

    python tests/reliability/media_soak.py --clips=../shared/clips --emoji=../shared/emoji [--files=500] [--seed=0]

Files are made from real ones: cut to a random length, bytes overwritten or removed at random places, or renamed to
another format. Prints a table of the reasons. Exit code 1 if `prepare` fails, prints a traceback, takes more than
20 s for a file or 1 GiB in all, or does not account for a file.
"""

import argparse
import collections
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile

from rich.console import Console
from rich.table import Table

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS, GIBIBYTES = 20.0, 1.0
SOURCES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".webp", ".gif", ".png"}
# Runs the command, and notes the seconds that it spends on each file and the peak of its memory.
PROGRAM = """
import contextlib, json, resource, sys, time
from sora_jax.cli.main import main
from sora_jax.data.prepare.sources import Source

times, opened = {}, Source.opened

@contextlib.contextmanager
def timed(source):
    begin = time.monotonic()
    try:
        with opened(source) as path:
            yield path
    finally:
        times[source.name] = time.monotonic() - begin

Source.opened = timed
code = main(sys.argv[2:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
open(sys.argv[1], "w").write(json.dumps({"code": code, "times": times, "gibibytes": peak}))
"""


def damage(data: bytes, draw: random.Random) -> bytes:
    """The bytes of a file after a random accident."""
    kind = draw.choice(("cut", "overwritten", "removed", "swapped", "header", "zeros"))
    if kind == "cut":
        return data[: draw.randrange(len(data))]
    made = bytearray(data)
    if kind == "header":
        for _ in range(draw.randint(1, 20)):
            made[draw.randrange(min(512, len(made)))] = draw.randrange(256)
    elif kind == "overwritten":
        for _ in range(draw.randint(1, 200)):
            made[draw.randrange(len(made))] = draw.randrange(256)
    else:
        start = draw.randrange(len(made))
        end = min(len(made), start + draw.randint(1, max(1, len(made) // 4)))
        if kind == "removed":
            del made[start:end]
        elif kind == "zeros":
            made[start:end] = bytes(end - start)
        else:
            made[start:end] = made[: end - start]
    return bytes(made)


def make_files(folder: pathlib.Path, sources: list[pathlib.Path], count: int, draw: random.Random):
    for number in range(count):
        source = draw.choice(sources)
        suffix = draw.choice(sorted(SOURCES)) if draw.random() < 0.1 else source.suffix
        (folder / f"{number:04}{suffix}").write_bytes(damage(source.read_bytes(), draw))


def run_prepare(folder: pathlib.Path, out: pathlib.Path) -> tuple[dict, str]:
    """({"code", "times", "gibibytes"} of the run, what it printed)."""
    result = out.with_suffix(".json")
    flags = ["--config.data.sizes=('32x32',)", "--config.data.frames=(17,5,1)", "--config.data.validation=0.1"]
    arguments = ["prepare", f"--videos={folder}", f"--out={out}", *flags]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(result), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if not result.exists():
        return {"code": done.returncode or 1, "times": {}, "gibibytes": 0.0}, done.stdout + done.stderr
    return json.loads(result.read_text()), done.stdout + done.stderr


def check(run: dict, said: str, out: pathlib.Path, count: int) -> list[str]:
    """What is wrong with a run, a line each."""
    wrong = []
    if run["code"] or "Traceback" in said:
        return [f"prepare ended with {run['code']}: {said[-2000:]}"]
    slow = {name: seconds for name, seconds in run["times"].items() if seconds > SECONDS}
    wrong += [f"{name}: {seconds:.1f} s, more than {SECONDS:g}" for name, seconds in slow.items()]
    if run["gibibytes"] > GIBIBYTES:
        wrong.append(f"{run['gibibytes']:.2f} GiB, more than {GIBIBYTES:g}")
    files = json.loads((out / "prepared.json").read_text())["files"]
    if len(files) != count:
        wrong.append(f"{len(files)} of {count} files are accounted for")
    wrong += [f"{f['name']}: no clip and no reason" for f in files if not f["clips"] and not f["reason"]]
    return wrong


def show(run: dict, out: pathlib.Path, console: Console):
    files = json.loads((out / "prepared.json").read_text())["files"]
    used = sum(not file["reason"] for file in files)
    reasons = collections.Counter(re.sub(r"[\d.]+", "n", file["reason"])[:80] for file in files if file["reason"])
    table = Table("files", "outcome", title=f"{len(files)} damaged files")
    table.add_row(f"{used}", "used")
    for reason, count in reasons.most_common():
        table.add_row(f"{count}", reason)
    console.print(table, markup=False)
    slowest = max(run["times"].values(), default=0.0)
    console.print(
        f"slowest file {slowest:.1f} s, all {sum(run['times'].values()):.0f} s, {run['gibibytes']:.2f} GiB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=pathlib.Path, default=ROOT / "../shared/clips")
    parser.add_argument("--emoji", type=pathlib.Path, default=ROOT / "../shared/emoji")
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    sources = sorted(p for folder in (asked.clips, asked.emoji) for p in folder.glob("*") if p.suffix in SOURCES)
    if not sources:
        parser.error(f"no media in {asked.clips} and {asked.emoji}; name folders with --clips and --emoji")
    console = Console(width=115)
    with tempfile.TemporaryDirectory(prefix="sora_jax-soak-") as folder:
        videos, out = pathlib.Path(folder, "videos"), pathlib.Path(folder, "data")
        videos.mkdir()
        make_files(videos, sources, asked.files, random.Random(asked.seed))
        run, said = run_prepare(videos, out)
        wrong = check(run, said, out, asked.files)
        if (out / "prepared.json").exists():
            show(run, out, console)
    for line in wrong:
        console.print(f"WRONG {line}", markup=False, highlight=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
