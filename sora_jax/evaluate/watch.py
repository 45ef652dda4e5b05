"""Evaluation beside a training run: each checkpoint as it becomes complete, until the run ends."""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence

import rich.console
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from sora_jax.checkpoint.kept_steps import keep_steps
from sora_jax.checkpoint.workdir import CHECKPOINTS, steps_in
from sora_jax.cluster.agreement import of_first_host, run_on_first_host
from sora_jax.core.errors import InputError
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest, kept_checkpoints, open_checkpoint
from sora_jax.train.monitoring.run_history import FILE as HISTORY
from sora_jax.train.workdir_lock import has_died, is_locked

POLL_SECONDS = 5.0  # between two looks at the run
START_SECONDS = 3600.0  # to wait for the first checkpoint of a run that is not there yet
BEST, NOW = "evaluate: the best", "evaluate: being measured"


def watch(
    workdir: pathlib.Path,
    out: pathlib.Path,
    measure: Callable[[Sequence[CheckpointUnderTest]], dict],
    *,
    every: int,
    keep_best: bool,
    console: rich.console.Console,
    poll: float = POLL_SECONDS,
) -> dict:
    """Measure the checkpoints of a run as they appear, always the newest; those that are overtaken are skipped.

    It ends when the run has ended and its last checkpoint is measured.

    Args:
      measure: subjects -> the content of evaluation.json; what was measured before is not measured again.
      every: take only steps that are multiples of it; 1: all.
      keep_best: whether to keep the best checkpoint from pruning.
    Returns: the content of evaluation.json after the last step.
    Raises: InputError if there is no run, or no checkpoint within an hour.
    """
    known = {subject.step: subject for subject in kept_checkpoints(workdir, out)}
    summary: dict = {}
    began = time.monotonic()
    while True:
        step, over = _look(workdir, set(known), every)
        if step is not None:
            run_on_first_host(functools.partial(keep_steps, workdir, NOW, [step]))
            try:
                known[step] = open_checkpoint(workdir, f"{workdir.resolve().name} at {step:,}", out, step=step)
                summary = measure([known[n] for n in sorted(known)])
            except InputError as error:
                if error.code != 2 or (workdir / CHECKPOINTS / str(step)).is_dir():
                    raise
                del known[step]
                console.print(f"step {step:,}: was pruned while it was measured; left out")
                continue
            run_on_first_host(functools.partial(_after, workdir, step, summary, keep_best))
        elif over:
            run_on_first_host(lambda: keep_steps(workdir, NOW, []))
            if not known:
                raise InputError(f"{workdir}: the run has ended, and there is no checkpoint in it")
            console.print(f"the run has ended; {len(known)} of its checkpoints are measured")
            return summary or measure([known[n] for n in sorted(known)])
        elif not known and time.monotonic() - began > START_SECONDS:
            raise InputError(f"{workdir}: no checkpoint in {START_SECONDS / 60:.0f} minutes; is the run on?")
        else:
            time.sleep(poll)


def _look(workdir: pathlib.Path, known: set[int], every: int) -> tuple[int | None, bool]:
    """(the newest complete step that is not measured, whether the run has ended), the same in all processes."""

    def look():
        # In this order: a run that ends between the two looks is seen as ended only with its last checkpoint.
        over = run_has_ended(workdir)
        new = [
            step for step in steps_in(workdir / CHECKPOINTS) if step > max(known, default=-1) and step % every == 0
        ]
        return json.dumps([max(new, default=None), over])

    step, over = json.loads(of_first_host(look))
    return step, over


def run_has_ended(workdir: pathlib.Path) -> bool:
    """Whether a run was on and is on no more: in order, or because it died and was not started again."""
    try:
        starts = json.loads((workdir / HISTORY).read_text())
    except (OSError, ValueError):
        return False
    if not starts:
        return False
    return not is_locked(workdir) if "ended" in starts[-1] else has_died(workdir)


def _after(workdir: pathlib.Path, step: int, summary: dict, keep_best: bool):
    """Write the numbers of a step into the run's TensorBoard, and ask for the best step to be kept."""
    (mine,) = [one for one in summary["checkpoints"] if one["step"] == step]
    values = [
        Summary.Value(tag=f"evaluate/{name}", simple_value=number["value"])
        for name, number in mine["numbers"].items()
    ]
    board = workdir / "tensorboard" / "evaluate"
    board.mkdir(parents=True, exist_ok=True)
    # By itself the name holds the second alone, and the events of a second step in it would replace the first's.
    writer = EventsWriter(str(board / "events"), f".{step}")
    writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
    writer.close()
    best = summary["best"]["subject"] if summary["best"] else mine["name"]
    if keep_best:
        keep_steps(workdir, BEST, [one["step"] for one in summary["checkpoints"] if one["name"] == best])
