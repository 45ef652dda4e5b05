"""The benchmark `tasks`: every task of `sample` in the shapes world.

Measured are the fidelity of conditioning frames, the smoothness at joins, and agreement with the prompt. Inputs
are rendered from scenes held out of training. Results are read from the files that `sample` writes; the same
frames through the autoencoder alone, written in the same way, are the reference.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.core.progress import progress_bar
from sora_jax.data.media.write import write_clip
from sora_jax.evaluate.benchmark import Benchmark, Options, Sample, read_video, terminal_table
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.evaluate.metrics.motion import STILL_BELOW
from sora_jax.evaluate.metrics.reconstruction import MAX_PSNR
from sora_jax.evaluate.samples import cells, digest, sample_by_command, size_of
from sora_jax.generate.output.writer import VideoWriter
from sora_jax.generate.request import TaskInputs
from sora_jax.generate.tasks import Coder, coder_of
from sora_jax.report.figures import draw_contact_sheet
from sora_jax.report.page import Picture, Section, Table
from sora_jax.worlds.shapes.captions import caption
from sora_jax.worlds.shapes.detector import read_paths
from sora_jax.worlds.shapes.prompt_suite import ALL, SEED, agreement, interval_text, percent, shares
from sora_jax.worlds.shapes.renderer import bounces, render, sample_scene

SAMPLES = 50
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MEASURES = {"given": "given, dB", "reconstruction": "alone, dB", "join": "join", "jump": "jump"}
SHOWN = 2  # results of each task on the contact sheet
STEP_MIN = 0.1  # pixels per frame; slower things are still


@dataclasses.dataclass(frozen=True)
class Trial:
    """One task on one scene.

    prompt: what the video should show; inputs: with the given files.
    given: frames, each part [F, H, W, 3] uint8 a video of its own; at: their numbers in the result; where: of its
      pixels those that were given, [H, W] bool, None: all. Given frames are as large, or have no others.
    joins: numbers of frames that follow on frames of another origin; 0: on the last one.
    """

    name: str
    prompt: str
    inputs: TaskInputs
    given: Sequence[np.ndarray] = ()
    at: Sequence[int] = ()
    where: np.ndarray | None = None
    joins: tuple[int, ...] = ()


def make_trials(number: int, cell: SampleSettings, coder: Coder, folder: pathlib.Path) -> Iterator[Trial]:
    """Every task on a held-out scene; what is given is written into the folder."""
    F, (H, W), fps = cell.frames, size_of(cell), cell.fps
    new, gap = F - 1, max(1, (F - 1) // coder.stride // 2) * coder.stride
    middle = (F - 1) // 2 // coder.stride * coder.stride
    scene, other = (sample_scene(SEED, n, held_out=True) for n in (number, number + 1))
    truth = render(scene, frames=2 * F + new, size=(H, W), fps=fps)

    def asked(frames, of=scene):
        bounced = bounces(of, frames=frames, size=(H, W), fps=fps)
        return caption(of, "plain", moving=True, bounced=bounced)

    def kept(name, frames):
        path = folder / name
        run_on_first_host(lambda: write_clip(path, frames, fps=fps))
        return path

    pictures = {n: (kept(f"{n}.png", truth[n : n + 1]), truth[n : n + 1]) for n in (0, middle, F - 1)}
    shown = {"image, first": [0], "image, last": [F - 1], "image, both": [0, F - 1], "keyframes": [*pictures]}
    for name, numbers in shown.items():
        files, frames = zip(*(pictures[n] for n in numbers), strict=True)
        if name == "keyframes":
            places = (f"{n / fps}:{file}" for n, file in zip(numbers, files, strict=True))
            inputs = TaskInputs("keyframes", keyframes=tuple(places))
        else:
            inputs = TaskInputs("image", **{"image" if n == 0 else "last_image": pictures[n][0] for n in numbers})
        yield Trial(name, asked(F), inputs, frames, numbers)

    before, later = truth[:F], truth[new : new + F]
    file = kept("before.mp4", before)
    inputs = TaskInputs("extend", videos=(file,), seconds=new / fps)
    yield Trial("extend forward", asked(F + new), inputs, [before], range(F), joins=(F,))
    inputs = TaskInputs("extend", videos=(kept("later.mp4", later),), seconds=new / fps, direction="backward")
    yield Trial("extend backward", asked(F + new), inputs, [later], range(new, new + F), joins=(new,))
    after = truth[F + gap : 2 * F + gap]
    inputs = TaskInputs("connect", videos=(file, kept("after.mp4", after)), seconds=gap / fps)
    at = [*range(F), *range(F + gap, 2 * F + gap)]
    yield Trial("connect", asked(2 * F + gap), inputs, [before, after], at, joins=(F, F + gap))
    yield Trial("loop", asked(F - 1), TaskInputs("loop"), joins=(0,))

    known = np.broadcast_to((np.arange(W) < W // 2) == number % 2, (H, W))
    mask = kept("mask.png", np.where(known[None, :, :, None], 0, np.full(3, 255)).astype(np.uint8))
    inputs = TaskInputs("inpaint", videos=(file,), mask=mask)
    yield Trial("inpaint", asked(F), inputs, [before], range(F), where=known)
    # Whole patches at each side, about a quarter of the picture.
    sides = (coder.settings.spatial_stride * p for p in coder.patch)
    y, x = (max(1, side // p // 4) * p for side, p in zip((H, W), sides, strict=True))
    known = np.zeros((H, W), bool)
    known[y : H - y, x : W - x] = True
    cut = before[:, y : H - y, x : W - x]
    inputs = TaskInputs("outpaint", videos=(kept("cut.mp4", cut),))
    yield Trial("outpaint", asked(F), inputs, [cut], range(F), where=known)
    for strength in STRENGTHS:
        inputs = TaskInputs("edit", videos=(file,), strength=strength)
        yield Trial(f"edit at {strength:g}", asked(F, other), inputs, [before], range(F))


def measure_trial(trial: Trial, made: np.ndarray, alone: np.ndarray | None, fps: float) -> dict:
    """What a result [F, H, W, 3] uint8 is worth.

    Args:
      alone: all given frames, one after the other, by the autoencoder alone.
    Returns: {"given": PSNR of what was given, in the result; "reconstruction": in `alone`; "join": motion across
      joins over motion elsewhere; "jump": what things move across them over their usual step; "found": as
      `agreement`}. None where there is nothing to measure.
    """
    values: dict = dict.fromkeys(MEASURES)
    if trial.given:
        given = np.concatenate(trial.given)
        values["given"] = _psnr(made[list(trial.at)], given, trial.where)
        values["reconstruction"] = _psnr(alone, given, trial.where)
    read = read_paths(made, fps=fps)
    if trial.joins:
        x = made.astype(np.float32)
        change = np.abs(x - np.roll(x, 1, axis=0)).mean(axis=(1, 2, 3))  # to each frame from the one before
        values["join"] = _at_joins(change, trial.joins, STILL_BELOW)
        paths = read[1] if read else []
        steps = [np.linalg.norm(path - np.roll(path, 1, axis=0), axis=1) for path in paths]
        jumps = [jump for step in steps if (jump := _at_joins(step, trial.joins, STEP_MIN)) is not None]
        values["jump"] = max(jumps, default=None)
    return values | {"found": agreement(trial.prompt, read and read[0])}


def _psnr(a, b, where):
    def chosen(x):
        kept = np.ones(x.shape[1:3], bool) if where is None or x.shape[1:3] != where.shape else where
        return x[:, kept].astype(np.float64)

    error = np.square(chosen(a) - chosen(b))
    return min(MAX_PSNR, float(10 * np.log10(255**2 / max(error.mean(), 1e-9))))


def _at_joins(change, joins, least):
    """Mean change at joins over the mean elsewhere; None if the latter is below `least`, or unknown."""
    there = np.isin(np.arange(len(change)), joins)
    elsewhere = ~there
    elsewhere[0] = False  # from the last frame to the first, which counts in a loop only
    usual = float(np.nanmean(change[elsewhere]))
    ratio = float(np.mean(change[there])) / usual if usual > least else math.nan
    return ratio if math.isfinite(ratio) else None


def _check(checkpoint: CheckpointUnderTest, options: Options):
    if options.sampler:
        raise InputError("--suite=tasks: takes no other sampler, as it measures the command `sample`")
    if checkpoint.settings.transformer.condition_channels:
        raise InputError(f"--suite=tasks: {checkpoint.workdir} is an image-to-video model, with no other task")
    least = 1 + 4 * checkpoint.settings.autoencoder.temporal_stride
    for cell in cells(checkpoint, options):
        if cell.frames < least:
            raise InputError(
                f"--suite=tasks: of {cell.frames} frames none can be given; {least} will do, see --frames"
            )


def _measure(checkpoint: CheckpointUnderTest, options: Options, console) -> dict:
    coder, count = coder_of(checkpoint.generator), options.samples or SAMPLES
    results: list[dict] = []
    with progress_bar(console) as bar:
        for cell in cells(checkpoint, options):
            folder = (
                checkpoint.out
                / "tasks"
                / digest([options.seed, checkpoint.content_hash, dataclasses.asdict(cell)])
            )
            task = bar.add_task(f"{checkpoint.name}: tasks, {cell.size}", total=count, numbers="")
            for number in range(count):
                for trial in make_trials(number, cell, coder, folder / f"{number:03}"):
                    path = folder / f"{number:03}" / trial.name.replace(",", "").replace(" ", "-") / "made.mp4"
                    seed = options.seed + number
                    sample_by_command(checkpoint, trial.prompt, path, cell, trial.inputs, seed=seed)
                    results += _read(checkpoint.out, trial, path, coder, cell)
                bar.advance(task)
    values: dict = {}
    run_on_first_host(lambda: values.update(_summary(checkpoint.out, results)))
    if values:
        console.print(terminal_table(*_table({checkpoint.name: values}, lambda found: percent(found["share"]))))
    return values


def _read(out, trial, path, coder, cell):
    """The values of a result, as the only element of a list; an empty list on other processes."""
    parts = [coder.decode(coder.encoded(part)) for part in trial.given]
    found: list[dict] = []

    def read():
        alone = None
        if parts:
            # Written with the same codec as the result.
            file = path.with_name("alone.mp4")
            with VideoWriter(file, cell.fps) as video:
                video.write(np.concatenate(parts))
            alone = read_video(file)
        about = {"task": trial.name, "prompt": trial.prompt, "video": str(path.relative_to(out))}
        found.append(about | measure_trial(trial, read_video(path), alone, cell.fps))

    run_on_first_host(read)
    return found


def _summary(out, results):
    """Means of each task; also draws a contact sheet."""
    by_task: dict = {}
    for name in dict.fromkeys(result["task"] for result in results):
        mine = [result for result in results if result["task"] == name]
        by_task[name] = {"adherence": shares([result["found"] for result in mine])}
        for key in MEASURES:
            there = [result[key] for result in mine if result[key] is not None]
            by_task[name][key] = float(np.mean(there)) if there else None
    first = [r for name in by_task for r in [r for r in results if r["task"] == name][:SHOWN]]
    videos = [read_video(out / result["video"]) for result in first]
    titles = [f"{result['task']}: {result['prompt']}" for result in first]
    sheet = f"tasks-{digest([result['video'] for result in results])}.png"
    draw_contact_sheet(out / sheet, videos, titles, columns=min(SHOWN, len(first) // len(by_task)), frames=6)
    return {"by_task": by_task, "results": results, "sheet": sheet}


def _table(results, say=interval_text):
    header = ("task", *MEASURES.values(), "things as asked", "all as asked")
    rows = []
    for name, values in results.items():
        for task, found in values["by_task"].items():
            shown = (found["adherence"].get(key) for key in ("count", ALL))
            title = task if len(results) == 1 else f"{task}, {name}"
            rows.append((title, *(found[key] for key in MEASURES), *(say(share) for share in shown)))
    return header, rows


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    note = "Scenes that were held out of training. In dB: what was given, in the result, and by the autoencoder "
    note += "alone. Join and jump are 1 where a join looks as all else: the change of the picture, and the way of "
    note += "the things, across it over those elsewhere."
    sheets = [
        Picture(folders[name] / values["sheet"], f"Results of each task, {name}.")
        for name, values in results.items()
    ]
    return [Section("Tasks", note, [Table(*_table(results)), *sheets])]


def _samples(values: dict) -> list[Sample]:
    made = []
    for one in values.get("results", ()):
        number = pathlib.Path(one["video"]).parent.parent.name  # of the scene
        found = {ALL: all(one["found"].values())}
        key = f"{number} {one['task']}"
        made.append(Sample(key, found, number, video=one["video"], prompt=f"{one['task']}: {one['prompt']}"))
    return made


TASKS = Benchmark(
    ("flow",),
    ("samples", "sizes", "frames", "seed"),
    _measure,
    _show,
    _check,
    samples=_samples,
    better={ALL: "higher"},
)
