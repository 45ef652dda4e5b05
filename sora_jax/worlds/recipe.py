"""Recipes: from nothing to released weights, by commands of this project, one after the other.

A recipe is data. Its stages can be run by hand. `run_recipe` runs them, skips those that are done, and continues
one that was interrupted, because each command continues its own work.
"""

import ctypes.util
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time

import rich.console

import sora_jax
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import atomic_write, read_object
from sora_jax.report.page import duration

FILE = "recipe.json"
DEVICES = "JAX_NUM_CPU_DEVICES"
PROGRAM = "import sys; from sora_jax.cli.main import main; sys.exit(main())"
LEAST = 8  # clips or samples, whatever the hours


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command of a recipe.

    Args:
      name: of the stage, without blanks.
      command: without `sora-jax`. {work} is the workdir and {configs} the folder of configs. {count:N} is a number
        of samples and {minutes:N} a time in the plan as declared, both scaled by the hours that are asked for;
        {share} is the factor itself.
      minutes: that it takes in the plan as declared.
      decay: (workdir of a training run, share): {decay} is this share of the updates that it has had when the
        stage begins, and {updates} the sum of both.
      devices: that JAX makes of the CPU.
      verdict: its exit code 3 says that the model is bad, not that the command failed.
    """

    name: str
    command: str
    minutes: float
    decay: tuple[str, float] | None = None
    devices: int = 2
    verdict: bool = False


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Stages in their order.

    Args:
      about: hardware, time and result, for people.
      hours, gigabytes: that the plan as declared takes.
    """

    name: str
    about: str
    hours: float
    gigabytes: float
    stages: tuple[Stage, ...]


def mixture(**weights: float) -> str:
    """The flag of a mixture; the weights are shares of the clips, not of the patches."""
    parts = ",".join(f"{{work}}/latents/{name}:{weight:g}" for name, weight in weights.items())
    return f"--config.data.path={parts}"


def timed(minutes: float) -> str:
    """Flags of a constant rate until a run has trained so long in all."""
    return (
        "--config.optimizer.schedule=constant --config.train.steps=1000000 "
        f"--config.train.minutes={{minutes:{minutes:g}}}"
    )


FALLING = (
    "--config.optimizer.schedule=wsd --config.optimizer.decay_steps={decay} --config.train.steps={updates} "
    "--config.optimizer.final_fraction=0.01"
)


class _Scaled:
    """Formats its format specification times a factor."""

    def __init__(self, factor: float, least: float | None = None):
        self.factor, self.least = factor, least

    def __format__(self, spec: str) -> str:
        value = float(spec) * self.factor
        return f"{value:.4g}" if self.least is None else str(max(self.least, round(value)))


class Plan:
    """A recipe in a workdir, scaled to a number of hours; what is done is kept in its recipe.json."""

    def __init__(self, recipe: Recipe, workdir: pathlib.Path, hours: float | None):
        self.recipe, self.workdir = recipe, workdir
        self.factor = (hours or recipe.hours) / recipe.hours
        self.path = workdir / FILE
        self.log = read_object(self.path) if self.path.exists() else {}
        configs = pathlib.Path(sora_jax.__file__).parent.parent / "configs"
        if not configs.is_dir():
            raise InputError(f"{configs}: no such folder; a recipe needs a clone of the repository")
        near = configs.is_relative_to(pathlib.Path.cwd())
        self.configs = configs.relative_to(pathlib.Path.cwd()) if near else configs

    def key(self, stage: Stage) -> str:
        """The stage's command with everything but the updates of a decay: by it a finished stage is known."""
        text = self._format(stage, decay="{decay}", updates="{updates}")
        return text.replace(str(self.configs), "{configs}").replace(str(self.workdir), "{work}")

    def record(self, stage: Stage) -> dict:
        return self.log.get(self.key(stage), {})

    def command(self, stage: Stage) -> str:
        """The stage's command; that of a decay stays the same once it has begun."""
        if stage.decay is None:
            return self._format(stage)
        run, share = stage.decay
        try:
            updates = self.record(stage).get("updates") or find_checkpoint(self.workdir / run)[1]
        except InputError:  # the run has not begun: its updates are not known
            return self._format(stage, decay="DECAY", updates="UPDATES")
        decay = max(1, round(share * updates))
        return self._format(stage, decay=decay, updates=updates + decay)

    def _format(self, stage: Stage, **decay) -> str:
        counts, minutes = _Scaled(self.factor, LEAST), _Scaled(self.factor)
        work, configs = shlex.quote(str(self.workdir)), shlex.quote(str(self.configs))
        return stage.command.format(
            work=work, configs=configs, share=f"{self.factor:.4g}", count=counts, minutes=minutes, **decay
        )

    def begin(self, stage: Stage):
        """Record how many updates a run had when its decay began."""
        if stage.decay and "updates" not in self.record(stage):
            _, step = find_checkpoint(self.workdir / stage.decay[0])
            self._write(stage, {"updates": step})

    def add(self, stage: Stage, seconds: float, *, done: bool):
        """Record that the stage has taken more seconds, and whether it is done."""
        record = self.record(stage)
        self._write(stage, record | {"seconds": record.get("seconds", 0.0) + seconds, "done": done})

    def _write(self, stage: Stage, record: dict):
        self.log[self.key(stage)] = record
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.log, indent=1))


def chosen(recipe: Recipe, first: str, only: str) -> list[Stage]:
    """The stages to run. Raises: InputError for a name that no stage has."""
    names = [stage.name for stage in recipe.stages]
    for flag, name in (("from", first), ("only", only)):
        if name and name not in names:
            raise InputError(f"--{flag}: no stage {name!r}, {did_you_mean(name, names)}; --dry-run lists them")
    if only:
        return [recipe.stages[names.index(only)]]
    return list(recipe.stages[names.index(first) if first else 0 :])


def environment() -> dict[str, str]:
    """Variables for all commands, of memory allocation: docs/notes/cpu_speed.md."""
    found = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    if library := ctypes.util.find_library("jemalloc"):
        decays = "dirty_decay_ms:-1,muzzy_decay_ms:-1,narenas:2,oversize_threshold:0"
        found |= {"LD_PRELOAD": library, "MALLOC_CONF": f"thp:always,{decays}"}
    return {name: value for name, value in found.items() if name not in os.environ}


def run_recipe(
    plan: Plan, console: rich.console.Console, *, first: str = "", only: str = "", dry_run: bool = False
):
    """Run the stages of a recipe, each as a process of its own.

    Args:
      first, only: name of the stage to begin with, or of the only one; these run even if they are done.
      dry_run: only print the commands.
    Raises: InputError if a stage fails or the disk is too small, before the next one begins.
    """
    stages = chosen(plan.recipe, first, only)
    variables = environment()
    introduce(plan, variables, console)
    if not dry_run:
        check_disk(plan)
    bad = []
    for stage in stages:
        number = f"{plan.recipe.stages.index(stage) + 1}/{len(plan.recipe.stages)}"
        console.print(f"\n{number} {stage.name}, about {duration(60 * plan.factor * stage.minutes)}")
        console.print(f"    {DEVICES}={stage.devices} sora-jax {plan.command(stage)}")
        if dry_run:
            continue
        if plan.record(stage).get("done") and not (first or only):
            console.print(f"    done before, in {duration(plan.record(stage)['seconds'])}")
            continue
        if run_stage(plan, stage, variables) == 3:
            bad.append(stage.name)
        console.print(f"    done in {duration(plan.record(stage)['seconds'])}")
    if not dry_run:
        seconds = sum(record.get("seconds", 0.0) for record in plan.log.values())
        console.print(f"\n{plan.recipe.name}: {duration(seconds)} in all, in {plan.workdir}")
    if bad:
        raise InputError(f"{', '.join(bad)}: the model does not do what its prompts say; the report is above")


def introduce(plan: Plan, variables: dict[str, str], console: rich.console.Console):
    """Print what the recipe is and needs."""
    recipe = plan.recipe
    console.print(f"{recipe.name}: {recipe.about}")
    console.print(
        f"plan: {recipe.hours * plan.factor:.3g} hours in {len(recipe.stages)} stages, {disk_need(plan):.1f} GB "
        f"in {plan.workdir}; this machine: {os.cpu_count()} {platform.machine()} cores"
    )
    console.print("to run a stage by hand, first:")
    console.print("    export " + " ".join(f"{name}={value}" for name, value in variables.items()))


def disk_need(plan: Plan) -> float:
    """GB; models and checkpoints take 0.6 of them, whatever the number of clips."""
    return 0.6 + plan.recipe.gigabytes * plan.factor


def check_disk(plan: Plan):
    """Raise InputError if a workdir that has not begun will not fit on its disk."""
    plan.workdir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(plan.workdir).free / 1e9
    if not plan.log and free < disk_need(plan):
        raise InputError(f"--workdir={plan.workdir}: {free:.1f} GB are free, {disk_need(plan):.1f} GB are needed")


def run_stage(plan: Plan, stage: Stage, variables: dict[str, str]) -> int:
    """Run a stage's command; SIGTERM is passed on to it. Returns: its exit code, 0 or the 3 of a verdict.

    Raises: InputError if it failed or was told to stop.
    """
    plan.begin(stage)
    began, stopped = time.monotonic(), []
    words = [sys.executable, "-c", PROGRAM, *shlex.split(plan.command(stage))]
    process = subprocess.Popen(words, env=os.environ | variables | {DEVICES: str(stage.devices)})

    def stop(*_):
        stopped.append(True)
        process.terminate()

    before, code = signal.signal(signal.SIGTERM, stop), None
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        done = not stopped and (code == 0 or (code == 3 and stage.verdict))
        plan.add(stage, time.monotonic() - began, done=done)
    if stopped:
        raise InputError(f"{stage.name}: stopped; the same command continues")
    if not done:
        raise InputError(f"{stage.name}: ended with exit code {code}, see above; the same command continues here")
    return code
