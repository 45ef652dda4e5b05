"""Subjects of an evaluation from the command line: checkpoints, their steps and settings, folders of videos."""

import dataclasses
import itertools
import pathlib
import re
import shlex
from collections.abc import Sequence

from sora_jax.checkpoint.workdir import CHECKPOINTS, RELEASED, find_checkpoint, find_steps, split_step
from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import as_path
from sora_jax.evaluate.benchmark import Subject
from sora_jax.evaluate.checkpoint_under_test import open_checkpoint
from sora_jax.evaluate.videos_under_test import is_video_folder, open_videos

SETTINGS = {field.name: type(field.default) for field in dataclasses.fields(SampleSettings)}
KEYS = ("name", "step", "prompts", *SETTINGS)


@dataclasses.dataclass(frozen=True)
class SubjectRequest:
    """One subject as the command line names it.

    step: "" is the newest. changes: of the sampling settings.
    """

    path: pathlib.Path
    name: str
    step: str = ""
    prompts: str = ""
    changes: dict = dataclasses.field(default_factory=dict)


def parse_subject(text: str) -> list[SubjectRequest]:
    """The subjects that one --subject asks for: "runs/a --steps=6,12 --solver=unipc" asks for two.

    Raises: InputError for an unknown key or a value of another type.
    """
    where = f"--subject={text!r}"
    try:
        path, *flags = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{where}: begin with a folder, then --KEY=VALUE ({error})") from None
    plain, varied = {}, {}
    for flag in flags:
        key, equals, value = flag.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if not flag.startswith("--") or not equals:
            raise InputError(f"{where}: {flag!r} is not --KEY=VALUE")
        if key not in KEYS:
            raise InputError(f"{where}: no key {key!r}, {did_you_mean(key, KEYS)}")
        if key not in SETTINGS:
            plain[key] = value
            continue
        values = [value] if key == "negative_prompt" else value.split(",")
        varied[key] = [_value(where, key, one) for one in values]
    made = []
    for chosen in itertools.product(*varied.values()):
        changes = dict(zip(varied, chosen, strict=True))
        several = {key: value for key, value in changes.items() if len(varied[key]) > 1 or "name" not in plain}
        words = [plain["name"]] if "name" in plain else [_short(path)]
        words += [f"{key.replace('_', ' ')} {value}" for key, value in several.items()]
        made.append(
            SubjectRequest(
                as_path(path), ", ".join(words), plain.get("step", ""), plain.get("prompts", ""), changes
            )
        )
    return made


def _value(where, key, text):
    kind = SETTINGS[key]
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{where}: {key}={text} is no {'whole number' if kind is int else 'number'}") from None


def _short(path) -> str:
    return as_path(path).resolve().name


def open_subjects(
    checkpoints: Sequence[str], subjects: Sequence[str], steps: str, out: pathlib.Path
) -> list[Subject]:
    """The subjects that a command line names, under different names.

    Args:
      checkpoints: workdirs, released models, or single steps RUN/checkpoints/STEP.
      subjects: as `parse_subject` takes them.
      steps: of each run: "" is the newest, a number, "all", or "every:N".
    Raises: InputError if one is absent, or named twice.
    """
    paths = [as_path(path) for path in checkpoints]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"--checkpoint={path}: is named twice")
    requests = [_of_step(SubjectRequest(path, _short(path))) for path in paths]
    names = [one.name for one in requests]
    if len(set(names)) < len(names):
        requests = [
            dataclasses.replace(a, name="-".join(p for p in a.path.parts if p not in "/..")) for a in requests
        ]
    requests += [_of_step(one) for text in subjects for one in parse_subject(text)]
    made = [subject for one in requests for subject in _open(one, one.step or steps, out)]
    names = [subject.name for subject in made]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: is the name of two subjects; add --name=... to a --subject")
    return made


def _of_step(request: SubjectRequest) -> SubjectRequest:
    """RUN/checkpoints/STEP taken apart."""
    workdir, step = split_step(request.path)
    if step is None:
        return request
    name = request.name.replace(str(step), _short(workdir), 1)
    return dataclasses.replace(request, path=workdir, name=name, step=request.step or str(step))


def _open(request: SubjectRequest, steps: str, out: pathlib.Path) -> list[Subject]:
    if is_video_folder(request.path) and not (request.path / CHECKPOINTS).is_dir():
        if request.changes or request.step:
            key = next(iter(request.changes), "step")
            raise InputError(f"{request.path}: is a folder of videos, which takes no --{key}")
        return [open_videos(request.path, request.name, out, request.prompts)]
    if request.prompts:
        raise InputError(f"{request.path}: is no folder of videos; --prompts maps the names of videos to prompts")
    wanted = chosen_steps(request.path, steps)
    made: list[Subject] = []
    for step in wanted:
        name = f"{request.name} at {step:,}" if len(wanted) > 1 or request.step else request.name
        made.append(open_checkpoint(request.path, name, out, step=step, changes=request.changes))
    return made


def chosen_steps(workdir: pathlib.Path, steps: str) -> list[int | None]:
    """The steps of a run that "", a number, "all" or "every:N" chooses; [None]: the newest.

    Raises: InputError for another text, or if no step is chosen.
    """
    if not steps:
        return [None]
    if steps.isdecimal():
        return [int(steps)]
    if steps != "all" and not re.fullmatch(r"every:[1-9]\d*", steps):
        raise InputError(f"--step={steps}: write a number, all, or every:N")
    folder, newest = find_checkpoint(workdir)
    if folder.name == RELEASED:
        return [newest]
    there = find_steps(workdir)[1]
    every = 1 if steps == "all" else int(steps.removeprefix("every:"))
    if chosen := [step for step in there if step % every == 0]:
        return list(chosen)
    raise InputError(f"--step={steps}: {workdir} has no such step, only {', '.join(map(str, there))}")
